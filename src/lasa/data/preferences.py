"""Preferences: prompts with a desirable or an undesirable answer, from a table."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lasa.data.prompt_tables import LABELS, parse_messages, row_id
from lasa.data.prompts import Message, Prompt
from lasa.errors import DataError
from lasa.files.artifacts import write_text
from lasa.files.tables import read_rows
from lasa.languages import canonical_language

Side = Literal["chosen", "rejected"]


@dataclass(frozen=True)
class Preference:
    """A prompt with a preferred and a dispreferred answer; one of the two may be missing (unpaired data).

    Attributes:
        prompt: The conversation, its language, query and label.
        chosen: The desirable answer.
        rejected: The undesirable answer.
        unfinished: The answer that stopped at a length limit, if one did: it is learned without an end of the turn.
    """

    prompt: Prompt
    chosen: str | None
    rejected: str | None
    unfinished: Side | None = None


@dataclass(frozen=True)
class PreferenceColumns:
    """Which columns of a file hold what.

    Attributes:
        prompt: Text, or a list of chat messages; may be missing where the answers are whole conversations.
        chosen: The desirable answer: a text, or a list of messages that ends in it.
        rejected: The undesirable answer, likewise.
        language: Language code.
        query_id: Identifies the meaning (or `id`); row numbers are used where the file has neither.
        harmful: Whether complying would be harmful.
    """

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    language: str = "language"
    query_id: str = "query_id"
    harmful: str = "harmful"


def read_preferences(
    path: Path,
    columns: PreferenceColumns | None = None,
    *,
    harmful: bool | None = None,
    language: str | None = None,
    source: str | None = None,
) -> list[Preference]:
    """Read preferences: `prompt` (text or messages), `chosen` and/or `rejected`, `language`, `harmful`.

    An answer is a text, or a list of messages that ends in one of the assistant's; what comes before it is the prompt,
    or repeats it. Unpaired files with `completion` and `label` (true for desirable) are understood as well.

    Args:
        path: The file; its suffix names the format.
        columns: The columns to use.
        harmful: Label of every row of a file that has no label column.
        language: Language of every row of a file that has no language column.
        source: Where the rows come from; the file's name by default.

    Raises:
        DataError: A column is missing or a row is malformed; file and row are named.
    """
    columns, source = columns or PreferenceColumns(), source or path.stem
    found = []
    for number, row in enumerate(read_rows(path), 1):
        query = row_id(path, row, next((name for name in (columns.query_id, "id") if name in row), None), number)
        found.append(parse_preference(f"{path}: row {number}", query, row, columns, source, harmful, language))
    return found


def parse_preference(
    where: str,
    query: str,
    row: Mapping[str, Any],
    columns: PreferenceColumns,
    source: str,
    harmful: bool | None = None,
    language: str | None = None,
) -> Preference:
    """One row.

    Args:
        where: File and row, for messages.
        query: What is asked, in any language.
        row: Its cells.
        columns: The columns to use.
        source: Where the row comes from.
        harmful: Label where the row has none.
        language: Language where the row has none.

    Raises:
        DataError: A cell is not what it should be.
    """
    cells = {"chosen": row.get(columns.chosen), "rejected": row.get(columns.rejected)}
    if "completion" in row and "label" in row:
        cells["chosen" if _truth(where, "label", row["label"]) else "rejected"] = row["completion"]
    asked = row.get(columns.prompt)
    messages = parse_messages(where, columns.prompt, asked) if asked is not None else None
    answers: dict[str, str | None] = {}
    for side, cell in cells.items():
        before, answers[side] = _answer(where, getattr(columns, side), cell)
        if before and messages is not None and not _same(before, messages):
            raise DataError(
                f"{where}, column {getattr(columns, side)!r}: the messages before the answer are not the prompt "
                f"({columns.prompt!r}, or what the other answer is to). Leave them out, or make them agree."
            )
        messages = messages or (parse_messages(where, getattr(columns, side), before) if before else None)
    if messages is None:
        raise DataError(f"{where}, column {columns.prompt!r}: there is no prompt, and no answer with messages before.")
    if not any(answers.values()):
        raise DataError(
            f"{where}: needs an answer in {columns.chosen!r} or {columns.rejected!r} (or 'completion' with 'label')."
        )
    try:
        spoken = canonical_language(str(row.get(columns.language) or language or ""))
    except DataError as error:
        raise DataError(f"{where}, column {columns.language!r}: {error}") from None
    label = row.get(columns.harmful)
    known = harmful if label in (None, "") and harmful is not None else _truth(where, columns.harmful, label)
    prompt = Prompt(query, spoken, messages, known, str(row.get("source") or source))
    return Preference(prompt, answers["chosen"], answers["rejected"], _side(where, row.get("unfinished")))


def write_preferences(path: Path, preferences: Iterable[Preference]) -> None:
    """Write preferences as JSONL (read back by `read_preferences`)."""
    rows = (
        {
            "prompt": list(one.prompt.messages),
            "chosen": one.chosen,
            "rejected": one.rejected,
            "language": one.prompt.language,
            "query_id": one.prompt.query_id,
            "harmful": one.prompt.harmful,
            "source": one.prompt.source,
            "unfinished": one.unfinished,
        }
        for one in preferences
    )
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _answer(where: str, column: str, cell: object) -> tuple[list[Message], str | None]:
    """The messages before an answer, and the answer."""
    before: list[Message] = []
    if cell is None or cell == "":
        return before, None
    if isinstance(cell, list) and cell and isinstance(cell[-1], dict) and cell[-1].get("role") == "assistant":
        before, cell = cell[:-1], cell[-1].get("content")
    if not isinstance(cell, str):
        raise DataError(
            f"{where}, column {column!r}: expected a text, or a list of messages that ends in one of the assistant, "
            f"found {type(cell).__name__}."
        )
    if not cell.strip():
        raise DataError(f"{where}, column {column!r}: the answer is empty.")
    return before, cell


def _same(before: object, messages: tuple[Message, ...]) -> bool:
    """Whether messages say what a prompt says, white space at the ends apart."""

    def bare(some: Any) -> list[tuple[str, str]]:
        return [(str(one.get("role")), str(one.get("content")).strip()) for one in some if isinstance(one, dict)]

    return bare(before) == bare(messages)


def _side(where: str, cell: object) -> Side | None:
    if cell in (None, ""):
        return None
    if cell not in ("chosen", "rejected"):
        raise DataError(f"{where}, column 'unfinished': expected chosen or rejected, found {cell!r:.60}.")
    return "chosen" if cell == "chosen" else "rejected"


def _truth(where: str, column: str, cell: object) -> bool:
    """A truth value, also as a table without types writes it."""
    found = LABELS.get(str(cell).strip().lower())
    if found is None:
        raise DataError(f"{where}, column {column!r}: expected true or false, found {cell!r:.60}.")
    return found
