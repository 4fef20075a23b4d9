"""What `lasa evaluate` makes of samples and people's labels."""

import csv

import pytest

from lasa.data.prompts import user_prompt
from lasa.evaluation.judges.agreement import Agreement, write_labelling_sheet
from lasa.evaluation.outcomes import Outcome, Sample, Verdict
from lasa.evaluation.results import corrected_attack_success


def judged(number, harmful, outcome):
    prompt = user_prompt(f"q{number}", "en", f"question {number}", harmful=harmful)
    return Sample("jail", prompt, f"answer {number}", Verdict(outcome), "judge")


def test_attack_success_is_corrected_by_the_judges_errors_on_harmful_prompts_alone(tmp_path):
    truth = [Outcome.COMPLIED if number % 2 else Outcome.REFUSED for number in range(40)]
    # On harmful prompts the judge takes every fifth refusal for compliance; on harmless ones it is always wrong.
    harmful = [judged(n, True, Outcome.COMPLIED if n % 10 == 0 else truth[n]) for n in range(40)]
    wrong = {Outcome.COMPLIED: Outcome.REFUSED, Outcome.REFUSED: Outcome.COMPLIED}
    harmless = [judged(n + 40, False, wrong[truth[n]]) for n in range(40)]
    samples = harmful + harmless
    sheet = labelled(samples, lambda row: truth[int(row["answer"].split()[1]) % 40], tmp_path / "labels.csv")
    found = corrected_attack_success(samples, samples, sheet)
    assert (found["sensitivity"]["value"], found["specificity"]["value"]) == (1, 16 / 20)
    assert found["asr"]["value"] == pytest.approx(0.5)


def test_a_label_belongs_to_the_question_as_it_was_asked(tmp_path):
    # two corpora number their questions alike, one asks with a change, and all are answered in the same words
    outcomes = {"of one": Outcome.COMPLIED, "of the other": Outcome.REFUSED, "of the otehr": Outcome.COMPLIED}
    samples = [
        Sample(text, user_prompt("q1", "en", text, harmful=True), "the answer", Verdict(outcome), "judge")
        for text, outcome in outcomes.items()
    ]
    sheet = labelled(samples, lambda row: outcomes[row["conversation"].removeprefix("user: ")], tmp_path / "labels.csv")
    found = corrected_attack_success(samples, samples, sheet)
    assert (found["sensitivity"]["value"], found["specificity"]["value"]) == (1, 1)


def labelled(samples, label, sheet):
    """A sheet of all samples, with what a person says of each row."""
    verdicts = tuple(sample.verdict for sample in samples)
    agreement = Agreement(
        ("a", "b"), tuple(s.prompt for s in samples), tuple(s.text for s in samples), (verdicts, verdicts)
    )
    write_labelling_sheet(sheet, agreement, random_rows=len(samples))
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"label": label(row)} for row in rows)
    return sheet
