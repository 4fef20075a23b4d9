"""A prompt table that stays on disk, for more prompts than one wants in memory."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

from lasa.data.prompt_tables import Columns, long_row
from lasa.data.prompts import Prompt
from lasa.errors import DataError
from lasa.files.tables import parse_object

COLUMNS = Columns(query_id="query_id")


class PromptFile(Sequence[Prompt]):
    """The rows of a JSONL file as `lasa.data.prompts.write_prompts` writes it, each read when it is asked for.

    In memory there are eight bytes a row, its place in the file. A row that is damaged is an error when it is read.

    Args:
        path: The file; blank lines are skipped.

    Raises:
        DataError: The file is missing or empty.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"No such prompt file: {path}. Give the path of a JSONL file.")
        self.path = path
        self._places = array("q")
        place = 0
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    self._places.append(place)
                place += len(line)
        if not self._places:
            raise DataError(f"{path}: the file has no rows.")

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        chosen = range(len(self))[index]
        return list(self._read(chosen)) if isinstance(chosen, range) else next(self._read([chosen]))

    def __iter__(self) -> Iterator[Prompt]:
        return self._read(range(len(self)))

    def _read(self, rows: Iterable[int]) -> Iterator[Prompt]:
        with self.path.open("rb") as file:
            for row in rows:
                file.seek(self._places[row])
                try:
                    line = file.readline().decode("utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(f"{self.path}: row {row + 1} is not UTF-8 text. Save the file as UTF-8.") from error
                cells = parse_object(f"{self.path}: row {row + 1}", line)
                yield long_row(
                    self.path, row + 1, cells, COLUMNS, COLUMNS.query_id if COLUMNS.query_id in cells else None
                )
