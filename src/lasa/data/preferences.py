"""Preferences: prompts with a desirable or an undesirable answer, from a table."""

from dataclasses import dataclass
from pathlib import Path

from lasa.data.prompts import Prompt, parse_messages, row_id
from lasa.errors import DataError
from lasa.files.tables import read_rows
from lasa.languages import canonical_language


@dataclass(frozen=True)
class Preference:
    """A prompt with a preferred and a dispreferred answer; one of the two may be missing (unpaired data).

    Attributes:
        prompt: The conversation, its language, query and label.
        chosen: The desirable answer.
        rejected: The undesirable answer.
    """

    prompt: Prompt
    chosen: str | None
    rejected: str | None


def read_preferences(path: Path) -> list[Preference]:
    """Read preferences: `prompt` (text or messages), `chosen` and/or `rejected`, `language`, `harmful`.

    An answer is a text, or a list with one message of the assistant. Unpaired files with `completion` and `label`
    (true for desirable) are understood as well.

    Raises:
        DataError: A column is missing or a row is malformed; file and row are named.
    """
    found = []
    for number, row in enumerate(read_rows(path), 1):
        where = f"{path}: row {number}"
        if "completion" in row and "label" in row:
            row = {**row, "chosen" if _truth(where, "label", row["label"]) else "rejected": row["completion"]}
        messages = parse_messages(where, "prompt", row.get("prompt"))
        chosen, rejected = (_answer(where, side, row.get(side)) for side in ("chosen", "rejected"))
        if chosen is None and rejected is None:
            raise DataError(f"{where}: needs an answer in 'chosen' or 'rejected' (or 'completion' with 'label').")
        try:
            language = canonical_language(str(row.get("language") or ""))
        except DataError as error:
            raise DataError(f"{where}, column 'language': {error}") from None
        harmful = _truth(where, "harmful", row.get("harmful"))
        query = row_id(path, row, next((name for name in ("query_id", "id") if name in row), None), number)
        found.append(Preference(Prompt(query, language, messages, harmful, path.stem), chosen, rejected))
    return found


def _answer(where: str, column: str, cell: object) -> str | None:
    if cell is None or cell == "":
        return None
    if isinstance(cell, list) and len(cell) == 1 and isinstance(cell[0], dict) and cell[0].get("role") == "assistant":
        cell = cell[0].get("content")
    if not isinstance(cell, str):
        raise DataError(
            f"{where}, column {column!r}: expected a text or a list with one message of the assistant, "
            f"found {type(cell).__name__}. What comes before the answer belongs into 'prompt'."
        )
    if not cell.strip():
        raise DataError(f"{where}, column {column!r}: the answer is empty.")
    return cell


def _truth(where: str, column: str, cell: object) -> bool:
    """A truth value, also as a table without types writes it."""
    text = str(cell).strip().lower()
    if text not in ("true", "yes", "1", "false", "no", "0"):
        raise DataError(f"{where}, column {column!r}: expected true or false, found {cell!r:.60}.")
    return text in ("true", "yes", "1")
