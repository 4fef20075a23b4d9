"""What every corpus loader shares: the files of a corpus, the columns it must have, and cells made uniform."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lasa.errors import DataError
from lasa.files.tables import listed, read_rows
from lasa.languages import canonical_language


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a file that must have these columns.

    Raises:
        DataError: The file is unreadable or lacks a column.
    """
    if path.is_dir():
        inside = ", ".join(sorted(item.name for item in path.iterdir())[:8])
        raise DataError(f"{path} is a folder; give one file of it ({inside}).")
    rows = read_rows(path)
    missing = [name for name in columns if name not in rows[0]]
    if missing:
        raise DataError(
            f"{path}: no column {missing[0]!r}; the file has {listed(rows[0])}. "
            "Is this the corpus you named, in its original format?"
        )
    for number, row in enumerate(rows, 1):
        for name in columns:
            if name not in row:
                raise DataError(f"{path}: row {number} has no {name!r}, as the first row has. Restore the file.")
    return rows


def corpus_files(path: Path, pattern: str) -> list[Path]:
    """The file itself, or the files of a folder that match a pattern, sorted by name.

    Raises:
        DataError: Nothing is there.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"No such file or folder: {path}. Give the corpus in its original layout.")
    files = sorted(path.glob(pattern))
    if not files:
        raise DataError(f"{path}: no file {pattern} in this folder. Give the folder that holds the corpus's files.")
    return files


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text, split at LF or CRLF only: other Unicode line ends belong to the text.

    Raises:
        DataError: The file is missing or not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Is the corpus complete?") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}. Save the file as UTF-8.") from error
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def filled(path: Path, row_number: int, row: dict[str, Any], column: str) -> str:
    """A cell that must hold text, cleaned.

    Raises:
        DataError: The cell is empty or not text; names file, row (counted from 1) and column.
    """
    cell = row.get(column)
    if not isinstance(cell, str) or not clean(cell):
        raise DataError(f"{path}: row {row_number}, column {column!r}: expected a text, found {type(cell).__name__}.")
    return clean(cell)


def clean(cell: object) -> str:
    """A cell as text, without outer whitespace and with LF line ends, so that copies of a file agree; "" for None."""
    return "" if cell is None else str(cell).replace("\r\n", "\n").strip()


def language_of(path: Path, code: object) -> str:
    """The canonical language a file's name or a file's row gives.

    Raises:
        DataError: The code is unknown; names the file.
    """
    try:
        return canonical_language(str(code))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
