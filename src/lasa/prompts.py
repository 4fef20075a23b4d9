"""The prompt table: what is asked, in which language, and with which other prompts it shares its meaning.

A prompt is one conversation that ends in a user message. Translations of one question share a `query_id`: it is
the label of the semantic silhouette, and the cluster of every interval.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lasa.errors import DataError
from lasa.languages import NAMES, canonical_language

Message = dict[str, str]
"""A chat message: `{"role": "system" | "user" | "assistant" | "tool", "content": str}`."""

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Prompt:
    """One row of the prompt table.

    Attributes:
        query_id: Identifies the meaning; equal for all translations of one question.
        language: BCP-47 code of the last user message.
        messages: The conversation so far; the last message is the user's (or a tool's).
        harmful: Whether complying would be harmful; None where the source does not say.
        source: Where the row comes from, for audits and leave-one-source-out.
        category: The source's own category, or "".
        details: Anything else an evaluation needs (an expected answer, a kind); never shown to the model.
    """

    query_id: str
    language: str
    messages: tuple[Message, ...]
    harmful: bool | None = None
    source: str = ""
    category: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The last user message."""
        return next(m["content"] for m in reversed(self.messages) if m["role"] == "user")

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object; the inverse of `Prompt.from_json`."""
        row: dict[str, Any] = {"query_id": self.query_id, "language": self.language, "messages": list(self.messages)}
        for name in ("harmful", "source", "category", "details"):
            if getattr(self, name) not in (None, "", {}):
                row[name] = getattr(self, name)
        return row

    @staticmethod
    def from_json(row: dict[str, Any]) -> "Prompt":
        """A row written by `to_json`."""
        return Prompt(**{**row, "messages": tuple(row["messages"])})


@dataclass(frozen=True)
class Columns:
    """Which columns of a file hold what; `prompt` may also hold a list of chat messages.

    Attributes:
        prompt: Column with the prompt in a long table (one row per prompt).
        language: Column with the language code in a long table.
        query_id: Column that identifies the meaning (or `query_id`); row numbers are used where the file has neither.
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


def user_prompt(query_id: str, language: str, text: str, **rest: Any) -> Prompt:
    """A single-turn prompt."""
    return Prompt(query_id, language, ({"role": "user", "content": text},), **rest)


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
            raise DataError(f"{path}: no column {name!r}. The file has: {_listed(names)}.")
    if not wide:
        raise DataError(
            f"{path}: no column {columns.prompt!r} and no column named after a language code (en, zh, sw, ...). "
            f"The file has: {_listed(names)}. Declare the prompt and language columns."
        )
    return _wide_table(path, rows, columns, wide, harmful)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV, TSV, JSONL, JSON or Parquet file as dictionaries.

    Raises:
        DataError: The file is missing, empty, of an unknown format, or damaged (row named).
    """
    if not path.is_file():
        raise DataError(f"No such prompt file: {path}. Give the path of a CSV, TSV, JSONL, JSON or Parquet file.")
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            rows = _read_delimited(path, "\t" if suffix == ".tsv" else ",")
        elif suffix in (".jsonl", ".ndjson"):
            rows = [_object(path, number, line) for number, line in enumerate(_lines(path), 1) if line.strip()]
        elif suffix == ".json":
            document = json.loads(path.read_text(encoding="utf-8-sig"))
            if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
                raise DataError(f"{path}: expected a list of objects at the top of the JSON file.")
            rows = document
        elif suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            try:
                rows = pyarrow.parquet.read_table(path).to_pylist()
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{path}: not a readable Parquet file ({error}).") from error
        else:
            raise DataError(f"{path}: unknown format {suffix!r}. Use .csv, .tsv, .jsonl, .json or .parquet.")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}. Save the file as UTF-8.") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}).") from error
    except csv.Error as error:
        raise DataError(f"{path}: not a readable table ({error}).") from error
    if not rows:
        raise DataError(f"{path}: the file has no rows.")
    return rows


def check_parallel(prompts: Sequence[Prompt]) -> None:
    """Make sure that a semantic and a language silhouette are both defined.

    Raises:
        DataError: Fewer than two languages or queries, or no query that occurs in two languages.
    """
    languages = {p.language for p in prompts}
    queries = Counter((p.query_id) for p in prompts)
    if len(languages) < 2:
        raise DataError(
            f"The prompts are all in one language ({', '.join(languages) or 'none'}); a silhouette needs at least two. "
            "Give parallel prompts: the same queries in several languages."
        )
    if len(queries) < 2:
        raise DataError("There is one query only; a silhouette needs at least two. Give more parallel queries.")
    if max(queries.values()) < 2:
        raise DataError(
            "No query occurs in two languages, so meaning and language cannot be told apart. "
            "Translations of one question must share their query id."
        )


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write a prompt table as JSONL (read back by `read_prompts`)."""
    with path.open("w", encoding="utf-8") as file:
        for prompt in prompts:
            file.write(json.dumps(prompt.to_json(), ensure_ascii=False) + "\n")


def _long_table(
    path: Path, rows: list[dict[str, Any]], columns: Columns, harmful: bool | None, language: str | None
) -> list[Prompt]:
    prompts = []
    ids = _query_id_column(list(rows[0]), columns)
    if columns.language not in rows[0] and language is None:
        raise DataError(
            f"{path}: no column {columns.language!r} for the language. The file has: {_listed(list(rows[0]))}. "
            "Name the column, or give one language for the whole file."
        )
    for number, row in enumerate(rows, 1):
        where = f"{path}: row {number}"
        column = columns.prompt if row.get(columns.prompt) is not None else "messages"
        messages = _messages(where, column, row.get(column))
        code = row.get(columns.language, language)
        prompts.append(
            Prompt(
                query_id=_query_id(row, ids, number),
                language=_language(where, columns.language, code),
                messages=messages,
                harmful=_label(where, columns.harmful, row.get(columns.harmful), harmful),
                source=str(row.get(columns.source) or path.stem),
                category=str(row.get(columns.category) or ""),
                details=row["details"] if isinstance(row.get("details"), dict) else {},
            )
        )
    return prompts


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
                    _query_id(row, ids, number),
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


def _query_id(row: dict[str, Any], column: str | None, number: int) -> str:
    return str(row[column]) if column and row.get(column) is not None else str(number - 1)


def _messages(where: str, column: str, cell: object) -> tuple[Message, ...]:
    if isinstance(cell, str):
        if not cell.strip():
            raise DataError(f"{where}, column {column!r}: the prompt is empty. Fill it in or remove the row.")
        return ({"role": "user", "content": cell.strip()},)
    if not isinstance(cell, list) or not cell:
        raise DataError(f"{where}, column {column!r}: expected a text or a list of chat messages, found {cell!r:.60}.")
    for message in cell:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise DataError(f"{where}, column {column!r}: a message needs a role out of {_listed(list(ROLES))}.")
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


_LABELS = {
    "1": True, "true": True, "yes": True, "harmful": True, "unsafe": True,
    "0": False, "false": False, "no": False, "benign": False, "safe": False, "harmless": False,
}  # fmt: skip


def _label(where: str, column: str, cell: object, default: bool | None) -> bool | None:
    if cell is None or cell == "":
        return default
    label = _LABELS.get(str(cell).strip().lower())
    if label is None:
        raise DataError(f"{where}, column {column!r}: expected harmful or benign (or 1/0, true/false), found {cell!r}.")
    return label


def _is_language(name: str) -> bool:
    try:
        return canonical_language(name) in NAMES
    except DataError:
        return False


def _read_delimited(path: Path, delimiter: str) -> list[dict[str, Any]]:
    csv.field_size_limit(10_000_000)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        rows: list[dict[str, Any]] = []
        for row in reader:
            if None in row:
                raise DataError(f"{path}: row {len(rows) + 1} has more cells than the header has columns.")
            rows.append(row)
    return rows


def _lines(path: Path) -> Iterable[str]:
    with path.open(encoding="utf-8-sig") as file:
        yield from file


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: row {number} is not valid JSON ({error}).") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}: row {number} is not a JSON object.")
    return row


def _listed(names: Sequence[Any]) -> str:
    return ", ".join(repr(name) for name in names[:20]) + (", ..." if len(names) > 20 else "")
