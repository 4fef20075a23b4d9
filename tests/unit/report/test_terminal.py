"""What a run prints at its end."""

import io

from rich.console import Console

from lasa.report.terminal import systems_tables


def rate(value):
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 100, "unscored": 0}


def test_answers_that_make_no_sense_stand_beside_attack_success_and_nothing_is_cut():
    group = {"asr": rate(0.10), "helpful": rate(0.9), "over_refusal": rate(0.05)}
    outcomes = {"refused": 10, "complied": 20, "irrelevant": 160, "wrong_language": 10}
    system = {"languages": {"en": group, "sw": group}, "seen": group, "unseen": group, "all": group}
    garbled = {**system, "all": {**group, "outcomes": outcomes}}
    console = Console(file=io.StringIO(), width=80)
    console.print(*systems_tables({"seen_languages": ["en"], "systems": {"interpreter-only": garbled}}))
    text = console.file.getvalue()
    assert "85.0" in text and "…" not in text


def test_without_counts_there_is_a_dash():
    group = {"asr": rate(0.10), "helpful": rate(0.9), "over_refusal": rate(0.05)}
    system = {"languages": {}, "seen": group, "unseen": group, "all": group}
    _, groups = systems_tables({"systems": {"base": system}})
    assert list(groups.columns[3].cells) == ["-"]
