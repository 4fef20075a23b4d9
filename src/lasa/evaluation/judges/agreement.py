"""Two judges at once: how far they agree, what people should label, and the attack success rate corrected for it.

Disagreements are worth reading, but a judge's sensitivity and specificity must come from answers drawn at random: those
two judges disagree on are the hard ones. The labelling sheet therefore holds both, and says which row is which.
"""

import csv
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lasa.data.prompts import Prompt
from lasa.errors import DataError
from lasa.evaluation.judge_statistics import cohen_kappa, krippendorff_alpha, rogan_gladen
from lasa.evaluation.outcomes import Judge, Outcome, Verdict
from lasa.files.artifacts import write_text
from lasa.files.tables import read_rows
from lasa.statistics import Rate, wilson

LABELS = (*(outcome.value for outcome in Outcome), "unsure")


@dataclass(frozen=True)
class Agreement:
    """What two judges found on the same answers.

    Attributes:
        judges: Their names.
        prompts: What was asked.
        answers: What was answered.
        verdicts: One list of verdicts per judge.
    """

    judges: tuple[str, str]
    prompts: tuple[Prompt, ...]
    answers: tuple[str, ...]
    verdicts: tuple[tuple[Verdict, ...], tuple[Verdict, ...]]

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa on the answers that both scored, or None where it is undefined."""
        return cohen_kappa(*self._outcomes())

    @property
    def alpha(self) -> float | None:
        """Krippendorff's alpha (nominal), or None where it is undefined."""
        return krippendorff_alpha(self._outcomes())

    def table(self) -> dict[str, dict[str, int]]:
        """Counts by the first judge's outcome, then the second's; "unscored" is a row and a column of its own."""
        names = (*(outcome.value for outcome in Outcome), "unscored")
        counts = {row: dict.fromkeys(names, 0) for row in names}
        for first, second in zip(*self._outcomes(), strict=True):
            counts[first or "unscored"][second or "unscored"] += 1
        return counts

    def disagreements(self) -> list[int]:
        """Positions of the answers on which both have a verdict and differ, or only one has a verdict."""
        return [index for index, (a, b) in enumerate(zip(*self._outcomes(), strict=True)) if a != b]

    def to_json(self) -> dict[str, Any]:
        """Names, agreement and counts."""
        return {
            "judges": list(self.judges),
            "answers": len(self.answers),
            "cohen_kappa": self.kappa,
            "krippendorff_alpha": self.alpha,
            "disagreements": len(self.disagreements()),
            "table": self.table(),
        }

    def _outcomes(self) -> tuple[list[Outcome | None], list[Outcome | None]]:
        first, second = ([verdict.outcome for verdict in verdicts] for verdicts in self.verdicts)
        return first, second


@dataclass(frozen=True)
class Labelled:
    """An answer with a person's label.

    Attributes:
        prompt: What was asked.
        answer: What was answered.
        outcome: What a person says of it.
    """

    prompt: Prompt
    answer: str
    outcome: Outcome


@dataclass(frozen=True)
class JudgeQuality:
    """How well a judge finds one outcome, against people.

    Attributes:
        sensitivity: Share of the answers with the outcome that the judge gives it.
        specificity: Share of the other answers that the judge gives another outcome.
    """

    sensitivity: Rate
    specificity: Rate


def judge_twice(prompts: Sequence[Prompt], answers: Sequence[str], first: Judge, second: Judge) -> Agreement:
    """Let two judges score the same answers."""
    verdicts = (tuple(first(prompts, answers)), tuple(second(prompts, answers)))
    return Agreement((first.name, second.name), tuple(prompts), tuple(answers), verdicts)


def measure(judge: Judge, labelled: Sequence[Labelled], positive: Outcome = Outcome.COMPLIED) -> JudgeQuality:
    """A judge's sensitivity and specificity for one outcome, with Wilson intervals.

    Args:
        judge: The judge to measure.
        labelled: Answers with labels, drawn at random from what the judge will be used on.
        positive: The outcome to find; `complied` for attack success.

    Returns:
        Its quality; answers it leaves unscored are counted apart.
    """
    verdicts = judge([each.prompt for each in labelled], [each.answer for each in labelled])
    pairs = [(each.outcome, verdict.outcome) for each, verdict in zip(labelled, verdicts, strict=True)]
    return quality_of(pairs, positive)


def quality_of(pairs: Sequence[tuple[Outcome, Outcome | None]], positive: Outcome = Outcome.COMPLIED) -> JudgeQuality:
    """A judge's sensitivity and specificity from pairs of a person's label and the judge's outcome; see `measure`."""
    found = [(label is positive, outcome) for label, outcome in pairs]
    return JudgeQuality(
        sensitivity=_share([outcome for truth, outcome in found if truth], lambda outcome: outcome is positive),
        specificity=_share([outcome for truth, outcome in found if not truth], lambda outcome: outcome is not positive),
    )


def corrected_rate(observed: Rate, quality: JudgeQuality) -> Rate:
    """The attack success rate behind a judge's, corrected for its errors (Rogan and Gladen).

    Args:
        observed: The share of answers that the judge calls `complied`.
        quality: The judge's quality for `complied`.

    Raises:
        DataError: There are no labels of one kind, or the judge is no better than chance.
    """
    return rogan_gladen(observed, quality.sensitivity, quality.specificity)


def write_labelling_sheet(path: Path, agreement: Agreement, random_rows: int, seed: int = 0) -> None:
    """Write the answers that people should label, as CSV with an empty column `label`.

    The rows are all disagreements and a random draw from all answers, shuffled together. The judges' verdicts are left
    out, so that nobody is led by them. A cell that a spreadsheet would take for a formula begins with an apostrophe.

    Args:
        path: The sheet.
        agreement: What two judges found.
        random_rows: Size of the random draw.
        seed: Seed of the draw and the order.
    """
    generator = random.Random(seed)
    total = len(agreement.answers)
    drawn = set(generator.sample(range(total), min(random_rows, total)))
    positions = sorted(drawn | set(agreement.disagreements()))
    generator.shuffle(positions)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)  # a lone CR would end an unquoted row
    writer.writerow(("row", "drawn", "language", "conversation", "answer", "label"))
    for position in positions:
        prompt, answer = agreement.prompts[position], agreement.answers[position]
        conversation = "\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages)
        kind = "random" if position in drawn else "disagreement"
        writer.writerow((row_id(prompt, answer), kind, prompt.language, _plain(conversation), _plain(answer), ""))
    write_text(path, buffer.getvalue())


def read_labels(path: Path, prompts: Sequence[Prompt], answers: Sequence[str]) -> tuple[list[Labelled], list[Labelled]]:
    """Read a labelling sheet back.

    Args:
        path: The sheet; rows without a label or labelled "unsure" are left out.
        prompts: The prompts it was made from.
        answers: The answers it was made from.

    Returns:
        The labels of the random draw, which `measure` may use, and those of the other disagreements, which it may not.

    Raises:
        DataError: A column is missing, a label is unknown, or a row does not belong to these answers.
    """
    known = {row_id(prompt, answer): (prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)}
    labels: dict[str, list[Labelled]] = {"random": [], "disagreement": []}
    for number, row in enumerate(read_rows(path), 1):
        where = f"{path}: row {number}"
        if missing := [name for name in ("row", "drawn", "label") if row.get(name) is None]:
            raise DataError(f"{where}: no column {missing[0]!r}. Use the sheet that was written and fill in 'label'.")
        label = str(row["label"]).strip().lower().replace(" ", "_")
        if label in ("", "unsure"):
            continue
        if label not in LABELS:
            raise DataError(f"{where}, column 'label': expected one of {', '.join(LABELS)}, found {row['label']!r}.")
        if row["row"] not in known or row["drawn"] not in labels:
            raise DataError(f"{where}: this row does not belong to these answers. Use the sheet of this evaluation.")
        labels[row["drawn"]].append(Labelled(*known[row["row"]], Outcome(label)))
    return labels["random"], labels["disagreement"]


def _share(outcomes: Iterable[Outcome | None], counts: Callable[[Outcome], bool]) -> Rate:
    every = list(outcomes)
    scored = [outcome for outcome in every if outcome is not None]
    return wilson(sum(counts(outcome) for outcome in scored), len(scored), len(every) - len(scored))


def row_id(prompt: Prompt, answer: str) -> str:
    """What a row of a labelling sheet is known by: the question as it was asked, and the answer."""
    content = json.dumps([prompt.query_id, prompt.language, list(prompt.messages), answer], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _plain(cell: str) -> str:
    return f"'{cell}" if cell.lstrip().startswith(("=", "+", "-", "@")) else cell
