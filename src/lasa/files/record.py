"""What the stages of a run wrote: the hash of every file, sealed, so that what is read later is what was written."""

from pathlib import Path
from typing import Any

from lasa.errors import ArtifactError
from lasa.files.artifacts import check_file, read_sealed

RECORD = "stages.json"
"""The record, in the run folder."""

SCHEMA = 1


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a run folder.

    Raises:
        ArtifactError: It was altered, or written by another version.
    """
    record = read_sealed(folder / RECORD)
    if record.get("schema") != SCHEMA:
        raise ArtifactError(f"{folder / RECORD} was written by another version of lasa. Use that version, or run anew.")
    return record


def check_recorded(path: Path) -> None:
    """Verify a file against the record of the run folder it lies in; a file of another origin has no record.

    Raises:
        ArtifactError: The file is not what the run wrote.
    """
    for folder in path.absolute().parents[:3]:
        if (folder / RECORD).is_file():
            name = path.absolute().relative_to(folder).as_posix()
            for stage in read_record(folder)["stages"].values():
                if name in stage["files"]:
                    check_file(path, stage["files"][name])
