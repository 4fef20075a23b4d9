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
    verdicts = tuple(sample.verdict for sample in samples)
    sheet = tmp_path / "labels.csv"
    agreement = Agreement(
        ("a", "b"), tuple(s.prompt for s in samples), tuple(s.text for s in samples), (verdicts, verdicts)
    )
    write_labelling_sheet(sheet, agreement, random_rows=80)
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["label"] = truth[int(row["answer"].split()[1]) % 40]
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    found = corrected_attack_success(samples, samples, sheet)
    assert (found["sensitivity"]["value"], found["specificity"]["value"]) == (1, 16 / 20)
    assert found["asr"]["value"] == pytest.approx(0.5)
