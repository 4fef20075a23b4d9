"""The rows of a table in a file: CSV, TSV, JSONL, JSON or Parquet, from anyone.

A file may hold anything. What comes out are dictionaries of plain values and text that can be encoded, or a DataError;
nothing in a file is run, and no path in it is opened.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lasa.errors import DataError
from lasa.extras import named_extras

LONGEST_CELL = 10_000_000
"""Characters of a cell of a delimited file."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV, TSV, JSONL, JSON or Parquet file as dictionaries.

    NaN and infinities, which JSON does not have but some writers put there for missing values, are None.

    Raises:
        DataError: The file is missing, empty, of an unknown format, or damaged (row named).
    """
    if not path.is_file():
        raise DataError(f"No such prompt file: {path}. Give the path of a CSV, TSV, JSONL, JSON or Parquet file.")
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        rows = _delimited(path, "\t" if suffix == ".tsv" else ",")
    elif suffix in (".jsonl", ".ndjson"):
        rows = [parse_object(f"{path}: row {number}", line) for number, line in numbered_lines(path)]
    elif suffix == ".json":
        rows = _json_array(path)
    elif suffix == ".parquet":
        rows = _parquet(path)
    else:
        raise DataError(f"{path}: unknown format {suffix!r}. Use .csv, .tsv, .jsonl, .json or .parquet.")
    if not rows:
        raise DataError(f"{path}: the file has no rows.")
    return rows


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, with their numbers from 1.

    Raises:
        DataError: The file is not UTF-8.
    """
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from error


def parse_object(where: str, text: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: It is none, or holds text that no encoding has.
    """
    row = _parse(where, text)
    if not isinstance(row, dict):
        raise DataError(f"{where} is not a JSON object.")
    return row


def listed(names: Iterable[Any]) -> str:
    """The first names of a sequence, for a message."""
    names = list(names)
    return ", ".join(f"{name!r:.60}" for name in names[:20]) + (", ..." if len(names) > 20 else "")


def _parse(where: str, text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=lambda _: None)
        if "\\ud" in text or "\\uD" in text:  # an escape may stand for half a character
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} has an escape that is half of a character (a lone surrogate). Remove it.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not valid JSON ({error}).") from error
    return value


def _json_array(path: Path) -> list[dict[str, Any]]:
    try:
        document = _parse(str(path), path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise DataError(f"{path}: expected a list of objects at the top of the JSON file.")
    return document


def _delimited(path: Path, delimiter: str) -> list[dict[str, Any]]:
    csv.field_size_limit(LONGEST_CELL)
    rows: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            _check_names(path, reader.fieldnames or [])
            for row in reader:
                if None in row:
                    raise DataError(f"{path}: row {len(rows) + 1} has more cells than the header has columns.")
                rows.append(row)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error
    except csv.Error as error:
        raise DataError(f"{path}: not a readable table ({error}).") from error
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    with named_extras():
        import pyarrow
        import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
        _check_names(path, table.column_names)
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error!s:.300}).") from error
    return rows


def _check_names(path: Path, names: Sequence[str]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(f"{path}: two columns are called {min(twice)!r:.60}. Rename or remove one of them.")


def _not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    return DataError(f"{path}: not UTF-8 text at byte {error.start}. Save the file as UTF-8.")
