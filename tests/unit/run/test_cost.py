"""What a stage costs: its own peak, not that of the process."""

import time

import numpy as np
import pytest

from lasa.run.cost import measured


def test_memory_and_time_are_those_of_the_stage():
    with measured() as small:
        time.sleep(0.05)
    if "peak_gib" not in small:
        pytest.skip("this system does not tell a process its own peak")
    with measured() as large:
        np.ones(2**26)  # half a GiB, let go of at once
    with measured() as after:
        sum(number * number for number in range(200_000))
    assert large["peak_gib"] - small["peak_gib"] == pytest.approx(0.5, abs=0.1)
    assert after["peak_gib"] < large["peak_gib"] - 0.4
    assert small["seconds"] >= 0.05 > small["cpu_seconds"]
    assert after["cpu_seconds"] > 0


def test_a_stage_that_fails_costs_nothing():
    with pytest.raises(ValueError), measured() as cost:
        raise ValueError
    assert cost == {}
