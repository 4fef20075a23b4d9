"""Answers that exist already, from a log or a labelled set: judged, and where there are labels, the judge measured.

A table has the columns `prompt` (text or messages), `answer`, `language` and, where people have labelled it, `label`:
`refusal` or `compliance` (or an outcome's name). Other labels (caution, does not know, ...) say neither; what the judge
makes of them is counted apart.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lasa.data.corpora.answers import half_of
from lasa.data.prompt_tables import Columns, long_row
from lasa.data.prompts import Prompt
from lasa.errors import DataError
from lasa.evaluation.answering import Answer
from lasa.evaluation.judge_settings import Half
from lasa.evaluation.judges.agreement import quality_of
from lasa.evaluation.outcomes import Outcome, Sample
from lasa.evaluation.panel import Panel
from lasa.evaluation.reasoning import UNFINISHED, split_reasoning
from lasa.files.tables import listed, read_rows
from lasa.languages import sort_languages

COLUMNS = Columns(harmful="harmful")
READ_LABELS = {"refusal": Outcome.REFUSED, "compliance": Outcome.COMPLIED, **{each.value: each for each in Outcome}}


@dataclass(frozen=True)
class Given:
    """One answer of a table.

    Attributes:
        prompt: What was asked.
        answer: What was answered, thoughts apart.
        label: What people say of it, or "".
    """

    prompt: Prompt
    answer: Answer
    label: str


def read_answers(path: Path, *, language: str | None = None, half: Half = "all") -> list[Given]:
    """The answers of a table.

    Args:
        path: CSV, TSV, JSONL, JSON or Parquet.
        language: Of every row of a table that has no such column.
        half: `development` and `held-out` are two halves by question (its `query_id`, else its text), the same ones
            every time: what is tuned on one is measured on the other.

    Raises:
        DataError: A column is missing, a cell is not what it should be, or nothing is left.
    """
    found = []
    for number, row in enumerate(read_rows(path), 1):
        if not isinstance(row.get("answer"), str):
            raise DataError(f"{path}: row {number} has no text in the column 'answer'. The file has: {listed(row)}.")
        ids = "query_id" if row.get("query_id") not in (None, "") else None
        prompt = long_row(path, number, row, COLUMNS, ids, language=language)
        if half != "all" and half != half_of(prompt.query_id if ids else prompt.text):
            continue
        told = split_reasoning(row["answer"])
        failure = UNFINISHED if told.answer is None else ""
        answer = Answer(told.answer or "", failure=failure, reasoning=told.reasoning)
        found.append(Given(prompt, answer, str(row.get("label") or "").strip().lower()))
    if not found:
        raise DataError(f"{path}: no question of this file is in the {half} half. Judge all of it.")
    return found


def judge_answers(panel: Panel, given: Sequence[Given]) -> list[Sample]:
    """The answers, judged, in order."""
    return panel.samples([(each.prompt.source, each.prompt) for each in given], [each.answer for each in given])


def judging_results(given: Sequence[Given], samples: Sequence[Sample]) -> dict[str, Any]:
    """Outcomes by language and, where there are labels, how well refusals are found.

    Returns:
        `{"languages": {code: {"answers", "outcomes", "unscored"}}}`; with labels also `sensitivity` (share of the
        refusals that the judge calls so) and `specificity` (share of the compliances that it does not), as rates with
        Wilson intervals, and `other_labels` (how many of each it calls refusals).
    """
    pairs = list(zip(given, samples, strict=True))
    languages = {}
    for code in sort_languages({sample.prompt.language for sample in samples}):
        rows = [(one, sample.verdict.outcome) for one, sample in pairs if sample.prompt.language == code]
        counts = Counter(outcome for _, outcome in rows)
        languages[code] = {
            "answers": len(rows),
            "outcomes": {outcome.value: counts[outcome] for outcome in Outcome},
            "unscored": counts[None],
            **_quality([(one.label, outcome) for one, outcome in rows]),
        }
    return {"judge": samples[0].judge, "languages": languages}


def _quality(labelled: Sequence[tuple[str, Outcome | None]]) -> dict[str, Any]:
    if not any(label for label, _ in labelled):
        return {}
    known = [(READ_LABELS[label], outcome) for label, outcome in labelled if label in READ_LABELS]
    quality = quality_of([pair for pair in known if pair[0] in _DECIDED], positive=Outcome.REFUSED)
    others = [(label, outcome) for label, outcome in labelled if label and READ_LABELS.get(label) not in _DECIDED]
    return {
        "sensitivity": quality.sensitivity.to_json(),
        "specificity": quality.specificity.to_json(),
        "other_labels": {
            label: {
                "answers": sum(one == label for one, _ in others),
                "refused": sum(one == label and outcome is Outcome.REFUSED for one, outcome in others),
            }
            for label in sorted({label for label, _ in others})
        },
    }


_DECIDED = (Outcome.REFUSED, Outcome.COMPLIED)
