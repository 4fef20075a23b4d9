"""Tables of prompts in files: long ones with a prompt a row, wide ones with a column for each language.

Whatever the format, a cell that cannot be used is named by file, row and column, and an id that is missing joins no
two questions.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lasa.data.prompts import Message, Prompt, user_prompt
from lasa.errors import DataError
from lasa.files.artifacts import file_hash
from lasa.files.tables import listed, read_rows
from lasa.languages import NAMES, canonical_language

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Columns:
    """Which columns of a file hold what; `prompt` may also hold a list of chat messages.

    Attributes:
        prompt: Column with the prompt in a long table (one row per prompt).
        language: Column with the language code in a long table.
        query_id: Column that identifies the meaning (or `query_id`); where the file has
            neither, no row is a translation of another, nor of another file's.
        harmful: Column with 0/1, true/false, harmful/benign or safe/unsafe.
        source: Column naming the row's origin.
        category: Column with the source's category.
        languages: Columns of a wide table (one column per language); found by their names when empty. A column named
            `id` holds identifiers, not Indonesian, unless it is declared here.
    """

    prompt: str = "prompt"
    language: str = "language"
    query_id: str = "id"
    harmful: str = "harmful"
    source: str = "source"
    category: str = "category"
    languages: tuple[str, ...] = ()


def read_prompts(
    path: Path | str, columns: Columns | None = None, *, harmful: bool | None = None, language: str | None = None
) -> list[Prompt]:
    """Read a prompt table from CSV, TSV, JSONL, JSON or Parquet.

    Two shapes are understood. *Wide*: one row per query and one column per language code (MultiJail). *Long*: one
    row per prompt, with a prompt column and a language column.

    Args:
        path: The file; its suffix names the format.
        columns: The columns to use; the defaults fit files written by lasa and MultiJail.
        harmful: Label for every row of a file that has no label column.
        language: Language of every row of a long table that has no language column.

    Returns:
        The prompts in file order. Empty cells of a wide table are missing translations and are left out.

    Raises:
        DataError: The file is missing or unreadable, a column is missing, a language code is unknown, or a prompt
            is empty; the message names file, row and column.
    """
    path = Path(path)
    columns = columns or Columns()
    rows = read_rows(path)
    names = list(rows[0])
    if columns.prompt in names or "messages" in names:
        return _long_table(path, rows, columns, harmful, language)
    ids = _query_id_column(names, columns)
    wide = columns.languages or tuple(n for n in names if isinstance(n, str) and n != ids and _is_language(n))
    for name in wide:
        if name not in names:
            raise DataError(f"{path}: no column {name!r}. The file has: {listed(names)}.")
    if not wide:
        raise DataError(
            f"{path}: no column {columns.prompt!r} and no column named after a language code (en, zh, sw, ...). "
            f"The file has: {listed(names)}. Declare the prompt and language columns."
        )
    return _wide_table(path, rows, columns, wide, harmful)


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write a prompt table as JSONL (read back by `read_prompts`)."""
    with path.open("w", encoding="utf-8") as file:
        for prompt in prompts:
            file.write(json.dumps(prompt.to_json(), ensure_ascii=False) + "\n")


def _long_table(
    path: Path, rows: list[dict[str, Any]], columns: Columns, harmful: bool | None, language: str | None
) -> list[Prompt]:
    if columns.language not in rows[0] and language is None:
        raise DataError(
            f"{path}: no column {columns.language!r} for the language. The file has: {listed(rows[0])}. "
            "Name the column, or give one language for the whole file."
        )
    ids = _query_id_column(list(rows[0]), columns)
    return [long_row(path, number, row, columns, ids, harmful, language) for number, row in enumerate(rows, 1)]


def long_row(
    path: Path,
    number: int,
    row: dict[str, Any],
    columns: Columns,
    ids: str | None,
    harmful: bool | None = None,
    language: str | None = None,
) -> Prompt:
    """One row of a long table.

    Args:
        path: The file, for messages.
        number: The row's number, from 1.
        row: Its cells.
        columns: The columns to use.
        ids: The column that identifies the meaning, or None where the file has none.
        harmful: Label where the row has none.
        language: Language where the row has none.

    Raises:
        DataError: A cell is not what it should be; the message names file, row and column.
    """
    where = f"{path}: row {number}"
    column = columns.prompt if row.get(columns.prompt) is not None else "messages"
    return Prompt(
        query_id=row_id(path, row, ids, number),
        language=_language(where, columns.language, row.get(columns.language, language)),
        messages=parse_messages(where, column, row.get(column)),
        harmful=_label(where, columns.harmful, row.get(columns.harmful), harmful),
        source=str(row.get(columns.source) or path.stem),
        category=str(row.get(columns.category) or ""),
        details=_details(row.get("details")),
    )


def _wide_table(
    path: Path, rows: list[dict[str, Any]], columns: Columns, wide: tuple[str, ...], harmful: bool | None
) -> list[Prompt]:
    prompts = []
    ids = _query_id_column([name for name in rows[0] if name not in wide], columns)
    for number, row in enumerate(rows, 1):
        where = f"{path}: row {number}"
        cells = {name: row.get(name) for name in wide}
        if not any(isinstance(cell, str) and cell.strip() for cell in cells.values()):
            raise DataError(f"{where}: the prompt is empty in every language column. Remove the row or fill it in.")
        for name, cell in cells.items():
            if cell is None or cell == "":
                continue  # a missing translation
            if not isinstance(cell, str) or not cell.strip():
                raise DataError(f"{where}, column {name!r}: the prompt is empty. Fill the cell in or leave it blank.")
            prompts.append(
                user_prompt(
                    row_id(path, row, ids, number),
                    _language(where, name, name),
                    cell.strip(),
                    harmful=_label(where, columns.harmful, row.get(columns.harmful), harmful),
                    source=str(row.get(columns.source) or path.stem),
                    category=str(row.get(columns.category) or ""),
                )
            )
    return prompts


def _query_id_column(names: Sequence[str], columns: Columns) -> str | None:
    return next((name for name in (columns.query_id, "query_id") if name in names), None)


def row_id(path: Path, row: dict[str, Any], column: str | None, number: int) -> str:
    """The row's own id; where the file has none, one that no row of another file has.

    Raises:
        DataError: The column is there and the cell holds no id.
    """
    if column is None:
        found = path.stat()
        return f"{path.stem}-{_mark(path, found.st_mtime_ns, found.st_size)}:{number - 1}"
    cell = row.get(column)
    given = "" if cell is None or (isinstance(cell, float) and math.isnan(cell)) else str(cell).strip()
    if given.lower() in NO_ID:
        raise DataError(
            f"{path}: row {number}, column {column!r}: there is no id ({cell!r:.20}). Rows with the same id are "
            "translations of each other: give the row an id, or leave the column out of the file."
        )
    return given


NO_ID = ("", "nan", "null", "none", "<na>")
"""How tables write that there is no id."""


@lru_cache(16)
def _mark(path: Path, changed_ns: int, size: int) -> str:
    return file_hash(path)[:8]


def parse_messages(where: str, column: str, cell: object) -> tuple[Message, ...]:
    """The conversation of a cell: a text, which is a user's message, or a list of chat messages.

    Raises:
        DataError: It is neither, or does not end in a message to answer.
    """
    if isinstance(cell, str):
        if not cell.strip():
            raise DataError(f"{where}, column {column!r}: the prompt is empty. Fill it in or remove the row.")
        return ({"role": "user", "content": cell.strip()},)
    if not isinstance(cell, list) or not cell:
        raise DataError(f"{where}, column {column!r}: expected a text or a list of chat messages, found {cell!r:.60}.")
    for message in cell:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise DataError(f"{where}, column {column!r}: a message needs a role out of {listed(list(ROLES))}.")
        if not isinstance(message.get("content"), str):
            raise DataError(f"{where}, column {column!r}: a message needs a text as its content.")
    last = cell[-1]
    if last["role"] not in ("user", "tool") or not last["content"].strip():
        raise DataError(f"{where}, column {column!r}: the last message must be a user's and must not be empty.")
    if not any(m["role"] == "user" for m in cell):
        raise DataError(f"{where}, column {column!r}: the conversation has no user message.")
    return tuple({"role": m["role"], "content": m["content"]} for m in cell)


def _language(where: str, column: str, code: object) -> str:
    try:
        return canonical_language(str(code or ""))
    except DataError as error:
        raise DataError(f"{where}, column {column!r}: {error}") from None


LABELS = {
    "1": True, "true": True, "yes": True, "harmful": True, "unsafe": True,
    "0": False, "false": False, "no": False, "benign": False, "safe": False, "harmless": False,
}  # fmt: skip
"""How a label may be written in a table."""


def _label(where: str, column: str, cell: object, default: bool | None) -> bool | None:
    if cell is None or cell == "":
        return default
    label = LABELS.get(str(cell).strip().lower())
    if label is None:
        raise DataError(
            f"{where}, column {column!r}: expected harmful or benign (or 1/0, true/false), found {cell!r:.60}."
        )
    return label


def _details(cell: object) -> dict[str, Any]:
    """Details as they are in JSON, which is what they are written to; a Parquet cell may hold times and bytes."""
    return dict(json.loads(json.dumps(cell, default=str))) if isinstance(cell, dict) else {}


def _is_language(name: str) -> bool:
    try:
        return canonical_language(name) in NAMES
    except DataError:
        return False
