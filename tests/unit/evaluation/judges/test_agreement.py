import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
from sklearn.metrics import cohen_kappa_score

from lasa.data.prompts import Prompt, user_prompt
from lasa.errors import DataError
from lasa.evaluation.judge_statistics import krippendorff_alpha
from lasa.evaluation.judges.agreement import (
    Labelled,
    corrected_rate,
    judge_twice,
    measure,
    read_labels,
    write_labelling_sheet,
)
from lasa.evaluation.outcomes import Outcome, Verdict
from lasa.statistics import wilson


class ByAnswer:
    """Judges by the answer's n-th word."""

    def __init__(self, name: str, position: int) -> None:
        self.name, self._position = name, position

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Verdict]:
        words = [answer.split()[self._position] for answer in answers]
        return [Verdict(None if word == "none" else Outcome(word)) for word in words]


ANSWERS = ["refused refused", "complied complied", "complied refused", "irrelevant irrelevant", "none refused"] * 4
PROMPTS = [user_prompt(f"q{number}", "en", f"question {number}", harmful=True) for number in range(len(ANSWERS))]
FIRST, SECOND = ByAnswer("first", 0), ByAnswer("second", 1)


def test_agreement_is_kappa_alpha_and_a_table() -> None:
    agreement = judge_twice(PROMPTS, ANSWERS, FIRST, SECOND)
    both = [answer.split() for answer in ANSWERS if "none" not in answer]
    assert agreement.kappa == pytest.approx(cohen_kappa_score([a for a, _ in both], [b for _, b in both]))
    ratings = [[None if a == "none" else a for a in (x.split()[i] for x in ANSWERS)] for i in (0, 1)]
    assert agreement.alpha == pytest.approx(krippendorff_alpha(ratings))
    table = agreement.table()
    assert {name: count for name, count in table["complied"].items() if count} == {"refused": 4, "complied": 4}
    assert table["unscored"]["refused"] == 4
    assert agreement.disagreements() == [index for index in range(20) if index % 5 in (2, 4)]


def test_a_judges_quality_is_counted_against_labels() -> None:
    labelled = [
        *[Labelled(PROMPTS[0], "complied x", Outcome.COMPLIED)] * 8,
        *[Labelled(PROMPTS[0], "refused x", Outcome.COMPLIED)] * 2,
        *[Labelled(PROMPTS[0], "none x", Outcome.COMPLIED)],
        *[Labelled(PROMPTS[0], "refused x", Outcome.IRRELEVANT)] * 19,
        *[Labelled(PROMPTS[0], "complied x", Outcome.REFUSED)],
    ]
    quality = measure(FIRST, labelled)
    assert quality.sensitivity == wilson(8, 10, unscored=1)
    assert quality.specificity == wilson(19, 20)
    corrected = corrected_rate(wilson(20, 100), quality)
    assert corrected.value == pytest.approx((0.2 + 0.95 - 1) / (0.8 + 0.95 - 1))
    assert corrected.low < corrected.value < corrected.high


def test_labels_survive_the_round_through_a_sheet(tmp_path: Path) -> None:
    answers = [*ANSWERS[:-1], "none refused =1+1\nnext line\rand a lone CR"]
    agreement = judge_twice(PROMPTS, answers, FIRST, SECOND)
    sheet = tmp_path / "label.csv"
    write_labelling_sheet(sheet, agreement, random_rows=6, seed=1)
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["drawn"] == "random" for row in rows) == 6
    assert {row["answer"] for row in rows} >= {answers[index] for index in agreement.disagreements()}
    assert all(row["label"] == "" for row in rows)
    assert not any("first" in row or "second" in row for row in rows)
    for number, row in enumerate(rows):
        row["label"] = ["Refused", "unsure", ""][number % 3]
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    drawn, others = read_labels(sheet, PROMPTS, answers)
    assert len(drawn) + len(others) == len(rows[::3])
    assert len(drawn) == sum(row["drawn"] == "random" for row in rows[::3])
    assert all(each.outcome is Outcome.REFUSED and each.answer in answers for each in drawn + others)


def test_an_answer_that_looks_like_a_formula_is_made_harmless(tmp_path: Path) -> None:
    class Split(ByAnswer):
        def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Verdict]:
            return [Verdict(Outcome.REFUSED)] * len(answers)

    agreement = judge_twice(PROMPTS[:1], ["=HYPERLINK(1)"], Split("a", 0), Split("b", 0))
    write_labelling_sheet(tmp_path / "s.csv", agreement, random_rows=1)
    with (tmp_path / "s.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["answer"] == "'=HYPERLINK(1)"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("unknown,random,refused", "does not belong"),
        ("unknown,random,harmful", "expected one of refused, complied"),
    ],
)
def test_a_sheet_that_cannot_be_used_is_named(tmp_path: Path, row: str, message: str) -> None:
    sheet = tmp_path / "s.csv"
    sheet.write_text(f"row,drawn,label\n{row}\n")
    with pytest.raises(DataError, match=f"row 1.*{message}"):
        read_labels(sheet, PROMPTS, ANSWERS)
    sheet.write_text("row,drawn\nx,random\n")
    with pytest.raises(DataError, match="no column 'label'"):
        read_labels(sheet, PROMPTS, ANSWERS)
