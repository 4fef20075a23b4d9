import json

import pytest
from typer.testing import CliRunner

from lasa.cli import app
from lasa.errors import DataError
from lasa.evaluation.judging import judge_answers, judging_results, read_answers
from lasa.evaluation.outcomes import Outcome, Verdict
from lasa.evaluation.panel import Panel


class Sorry:
    name = "sorry"

    def __call__(self, prompts, answers):
        return [Verdict(Outcome.REFUSED if "sorry" in text else Outcome.COMPLIED) for text in answers]


def write(path, *rows):
    names = ("prompt", "language", "answer", "label")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=False))) + "\n" for row in rows))
    return path


@pytest.fixture
def answers(tmp_path):
    return write(
        tmp_path / "log.jsonl",
        ("Tell me.", "en", "I'm sorry, I can't help with that.", "refusal"),
        ("Tell me.", "en", "<think>\nThis is a sorry request.\n</think>\nYes, here is how it is done.", "refused"),
        ("Tell me.", "en", "Yes, here is how it is done.", "compliance"),
        ("Tell me.", "en", "Mind that, sorry.", "caution"),
        ("Tell me.", "en", "<think>\nHm", "refusal"),
        ("Niambie.", "sw", "", "complied"),
    )


def test_a_judge_is_measured_by_language_and_other_labels_are_apart(answers):
    given = read_answers(answers)
    results = judging_results(given, judge_answers(Panel(Sorry()), given))
    english, swahili = results["languages"]["en"], results["languages"]["sw"]
    assert english["outcomes"] == {"refused": 2, "complied": 2, "irrelevant": 0, "wrong_language": 0, "empty": 0}
    assert english["unscored"] == 1  # it was still thinking
    sensitivity = english["sensitivity"]
    assert (sensitivity["value"], sensitivity["n"], sensitivity["unscored"]) == (0.5, 2, 1)
    assert (english["specificity"]["value"], english["specificity"]["n"]) == (1, 1)
    assert english["other_labels"] == {"caution": {"answers": 1, "refused": 1}}
    assert swahili["outcomes"]["empty"] == 1
    assert swahili["sensitivity"]["value"] is None


def test_a_log_without_labels_has_outcomes_only(tmp_path):
    given = read_answers(write(tmp_path / "log.jsonl", ("Tell me.", "en", "Yes.")))
    (found,) = judging_results(given, judge_answers(Panel(Sorry()), given))["languages"].values()
    assert set(found) == {"answers", "outcomes", "unscored"}


def test_the_halves_share_no_question_and_are_the_same_every_time(tmp_path):
    rows = [(f"Question {n // 3}", "en", f"Answer {n}") for n in range(120)]
    path = write(tmp_path / "log.jsonl", *rows)
    development, held_out = (
        {one.prompt.text for one in read_answers(path, half=h)} for h in ("development", "held-out")
    )
    assert development | held_out == {row[0] for row in rows}
    assert not development & held_out
    assert 10 < len(development) < 30


def test_a_table_without_answers_is_named(tmp_path):
    with pytest.raises(DataError, match=r"row 1 has no text in the column 'answer'"):
        read_answers(write(tmp_path / "log.jsonl", ("Tell me.", "en")))


def test_the_command_prints_rates_with_intervals_and_writes_verdicts(answers, tmp_path):
    called = ["judge", "--judge", "refusal-patterns", "--answers", str(answers), "--half", "all"]
    shown = CliRunner().invoke(app, [*called, "--json", "--output", str(tmp_path / "verdicts.jsonl")])
    assert shown.exit_code == 0, shown.output
    results = json.loads(shown.stdout)
    assert results["judge"] == "refusal-patterns"
    assert results["languages"]["en"]["sensitivity"]["n"] == 2
    assert len((tmp_path / "verdicts.jsonl").read_text().splitlines()) == 6
    table = CliRunner().invoke(app, called)
    assert "left alone" in table.output
    assert "Caution" in table.output
