"""A peak is strong, weak or none; what S_sem's sign says decides nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lasa.bottleneck.geometry import parallel_index, unit_vectors
from lasa.bottleneck.search import find_bottleneck
from lasa.bottleneck.verdict import PERMUTATIONS, Chance, Peak, against_chance, judge
from lasa.data.prompts import user_prompt

CHANCE = Chance(semantic=-0.5, semantic_p=0.005, xsim=0.01, xsim_p=0.005, difference=-0.4, difference_p=0.005)
PEAK = Peak(
    layer=16, highest=16, difference=-0.07, difference_low=-0.09, prominence=0.3, prominence_low=0.25, xsim=0.6,
    layer_interval=(15, 17), first=1, last=24, chance=CHANCE,
)  # fmt: skip


def test_a_peak_below_zero_is_weak_and_says_what_that_means():
    strength, verdict = judge(PEAK, 24)
    assert strength == "weak"
    assert "layer 16 of 24 (67% of the depth)" in verdict and "language by language" in verdict
    assert "60% of translations are found there (1.0% by chance)" in verdict


def test_a_peak_above_zero_beyond_its_uncertainty_is_strong():
    assert judge(replace(PEAK, difference=0.3, difference_low=0.2), 24)[0] == "strong"
    assert judge(replace(PEAK, difference=0.3, difference_low=-0.01), 24)[0] == "weak"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"highest": 24}, "an end of the stack"),
        ({"layer": 1, "highest": 1}, "an end of the stack"),
        ({"prominence": 0.04}, "the curve is flat"),
        ({"prominence_low": -0.001}, "the curve is flat"),
        ({"layer_interval": (1, 16)}, "reaches an end of the stack"),
        ({"layer_interval": (15, 23)}, "reaches an end of the stack"),
        ({"chance": replace(CHANCE, semantic_p=0.2)}, "no closer than permuted ones"),
        ({"chance": replace(CHANCE, xsim_p=0.2)}, "no closer than permuted ones"),
        ({"chance": replace(CHANCE, difference_p=1.0)}, "neither meaning nor language"),
    ],
)
def test_what_the_data_cannot_show_is_not_named(change, told):
    strength, verdict = judge(replace(PEAK, **change), 24)
    assert strength == "none" and told in verdict


def states_of(prompts, meaning, seed=0, width=64, language=1.0):
    """Vectors with a direction for each query and one for each language, as strong as said."""
    draw = np.random.default_rng(seed)
    queries = {q: draw.normal(size=width) for q in dict.fromkeys(p.query_id for p in prompts)}
    languages = {code: draw.normal(size=width) for code in dict.fromkeys(p.language for p in prompts)}
    rows = [meaning * queries[p.query_id] + language * languages[p.language] + draw.normal(size=width) for p in prompts]
    return torch.tensor(np.array(rows))


PROMPTS = [user_prompt(str(q), code, "x") for q in range(60) for code in ("en", "sw", "th")]


def test_meaning_is_told_from_chance():
    index = parallel_index(PROMPTS)
    found = against_chance(unit_vectors(states_of(PROMPTS, 1.0)), index, seed=0)
    assert found.semantic_p == found.xsim_p == 1 / (1 + PERMUTATIONS)
    assert found.xsim == pytest.approx(1 / 60, abs=0.005)


def test_under_the_null_small_p_values_are_as_rare_as_they_say():
    index = parallel_index(PROMPTS)
    p_values = [against_chance(unit_vectors(states_of(PROMPTS, 0.0, s)), index, s, 19).semantic_p for s in range(40)]
    assert np.mean(np.array(p_values) <= 0.2) == pytest.approx(0.2, abs=0.15)


def test_with_many_queries_a_peak_of_real_size_is_found_though_its_silhouette_is_negative():
    heights = ((0.0, 1.0), (0.0, 1.0), (0.4, 0.8), (0.5, 0.3), (0.4, 0.8), (0.0, 1.0), (0.0, 1.0))
    states = torch.stack([states_of(PROMPTS, m, seed=1, language=other) for m, other in heights], dim=1)
    found = find_bottleneck(states.float(), range(7), PROMPTS, 6, resamples=200)
    assert found.layers[3].semantic < 0
    assert (found.strength, found.layer) == ("weak", 3)


def test_names_and_numbers_that_translations_share_are_no_bottleneck_where_language_outweighs_them():
    heights = (0.0, 0.0, 0.2, 0.3, 0.2, 0.0, 0.0)
    states = torch.stack([states_of(PROMPTS, m, seed=1) for m in heights], dim=1)
    found = find_bottleneck(states.float(), range(7), PROMPTS, 6, resamples=200)
    assert found.peak.chance.semantic_p <= 0.01 < found.peak.chance.difference_p
    assert found.layer is None and "neither meaning nor language" in found.verdict
