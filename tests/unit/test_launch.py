"""The processes of a launch, and how they part."""

import os

import pytest
import torch

from lasa.launch import is_first, launched, leave_launch


class EndedError(Exception):
    """The process has ended."""


@pytest.fixture
def parted(monkeypatch):
    """What is done to part."""
    done = []

    def end(code):
        raise EndedError(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: not done)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: done.append("destroyed"))
    return done


def test_one_process_is_the_first_and_goes_on(monkeypatch, parted):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert is_first() and not launched()
    leave_launch()


def test_the_first_of_several_parts_and_goes_on(monkeypatch, parted):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert is_first() and launched()
    leave_launch()
    leave_launch()
    assert parted == ["destroyed"]


def test_another_one_ends_without_tearing_its_interpreter_down(monkeypatch, parted, capsys):
    """Python's end took threads with it that still held tensors, and the process aborted: once in some 24 times."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    print("said", end="")
    with pytest.raises(EndedError) as ended:
        leave_launch()
    assert ended.value.args == (0,) and parted == ["destroyed"]
    assert capsys.readouterr().out == "said"
