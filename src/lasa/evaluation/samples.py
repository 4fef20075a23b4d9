"""The samples of a system: `samples/<system>.jsonl`, one judged generation a line. The one reader, and the one writer.

A score that is not a number (the guard failed closed) is written as null: JSON has no other word for it.
"""

import json
from pathlib import Path

from lasa.errors import DataError
from lasa.evaluation.outcomes import Sample
from lasa.files.record import check_recorded
from lasa.files.tables import numbered_lines, parse_object


def read_samples(path: Path) -> list[Sample]:
    """Read `samples/<system>.jsonl`.

    Raises:
        DataError: The file is missing or empty, or a row is not a sample (row named).
        ArtifactError: The file is not what the run it lies in wrote.
    """
    if not path.is_file():
        raise DataError(f"No such file of samples: {path}. Write one with `lasa evaluate` or `lasa run`.")
    check_recorded(path)
    samples = [parse_sample(f"{path}: row {number}", line) for number, line in numbered_lines(path)]
    if not samples:
        raise DataError(f"{path}: the file has no rows.")
    return samples


def parse_sample(where: str, line: str) -> Sample:
    """The sample that a line holds.

    Raises:
        DataError: It holds none.
    """
    try:
        return Sample.from_json(parse_object(where, line))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where} is not a judged sample ({type(error).__name__}: {error}). "
            "Remove the file and run the evaluation again."
        ) from error


def sample_line(sample: Sample) -> str:
    """A sample as a line of its file."""
    return json.dumps(sample.to_json(), ensure_ascii=False, allow_nan=False) + "\n"
