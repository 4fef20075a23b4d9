"""Labelled answers as prompts: what an interpreter of answers, which is a judge of refusals, learns from."""

import hashlib
from pathlib import Path
from typing import Literal

from lasa.data.corpora.audit import normalise
from lasa.data.corpora.tables import clean, language_of, read_table
from lasa.data.prompts import Prompt, user_prompt
from lasa.errors import DataError

BEGINNING = 240
"""Characters of an answer that say whether it refuses; what follows is not read."""

LABELS = {"refusal": True, "compliance": False}


def beginning(answer: str) -> str:
    """What is read of an answer."""
    return clean(answer)[:BEGINNING].rstrip()


def half_of(question: str) -> Literal["development", "held-out"]:
    """The half of a labelled table that a question is in, by its hash: the same one every time."""
    return "development" if hashlib.sha256(question.strip().encode()).digest()[0] % 2 == 0 else "held-out"


def load_labelled_answers(path: Path) -> list[Prompt]:
    """Answers that people or a model labelled as refusals or compliance, in the place of prompts.

    Args:
        path: A table with `prompt`, `answer`, `language` and `label` (`refusal` or `compliance`; rows with other labels
            are left out), and `query_id` where translations of a question share one.

    Returns:
        The beginnings of the answers, `harmful` where they refuse; `details["split"]` is the half of their question.
        An answer that was given before, in whatever half, is left out, so that no text is in two tables.
    """
    found: dict[tuple[str, str], Prompt] = {}
    for number, row in enumerate(read_table(path, ["prompt", "answer", "language", "label"]), 1):
        label, text = LABELS.get(clean(row["label"]).lower()), beginning(clean(row["answer"]))
        if label is None or not text:
            continue
        language, question = language_of(path, row["language"]), clean(row.get("query_id")) or clean(row["prompt"])
        if not question:
            raise DataError(f"{path}: row {number} has neither a prompt nor a query_id, so its half cannot be told.")
        name = hashlib.sha256(question.encode()).hexdigest()[:16]
        prompt = user_prompt(
            f"labelled_answers:{name}",
            language,
            text,
            harmful=label,
            source="labelled_answers",
            details={"split": half_of(question)},
        )
        found.setdefault((language, normalise(text)), prompt)
    return list(found.values())
