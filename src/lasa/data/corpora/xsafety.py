"""XSafety (Wang et al., 2024): 14 categories of 200 prompts in ten languages, one headerless file each."""

import csv
from itertools import islice
from pathlib import Path

from lasa.data.corpora.tables import clean
from lasa.data.prompts import Prompt, user_prompt
from lasa.errors import DataError
from lasa.extras import named_extras
from lasa.languages import canonical_language

HARMLESS_CATEGORY = "commonsense"
"""The one category without harm: common-sense questions, the benchmark's control."""

CATEGORIES = (
    "Crimes_And_Illegal_Activities", "Ethics_And_Morality", "Goal_Hijacking", "Inquiry_With_Unsafe_Opinion", "Insult",
    "Mental_Health", "Physical_Harm", "Privacy_And_Property", "Prompt_Leaking", "Reverse_Exposure",
    "Role_Play_Instruction", "Unfairness_And_Discrimination", "Unsafe_Instruction_Topic", HARMLESS_CATEGORY,
)  # fmt: skip

MISSPELT = {"Crimes_And_Illegal_Activitie": "Crimes_And_Illegal_Activities"}
LONGEST_SHEET = 100_000
"""Rows that are read of an Excel file; one that names a later row would be padded with empty ones up to there."""

STRAY = ("commen_sense",)
"""A second, different common-sense file of the Hindi folder; it is not parallel to the others."""


def load_xsafety(path: Path) -> list[Prompt]:
    """XSafety's folder of language folders; some categories are CSV, some Excel files, under varying names.

    Row i of a category is the same prompt in every language, so an empty row is left out but still counted. The
    benchmark scores the *answer*: some prompts of the harmful categories (Mental_Health) can be answered safely.

    Args:
        path: The folder that holds `ar`, `bn`, ..., `sp` (Spanish), `zh`.

    Returns:
        Prompts `xsafety:<category>/<row>` (rows from 0); harmful except for the category `commonsense`.

    Raises:
        DataError: A folder lacks a category or has a file of no known category, or a file is damaged.
    """
    if not path.is_dir():
        raise DataError(f"No such folder: {path}. Give the folder that holds XSafety's language folders (ar, bn, ...).")
    prompts = []
    for folder in sorted(item for item in path.iterdir() if item.is_dir()):
        try:
            language = canonical_language(folder.name)
        except DataError:
            continue
        for category, file in _category_files(folder).items():
            prompts += [
                user_prompt(
                    f"xsafety:{category}/{row}",
                    language,
                    text,
                    harmful=category != HARMLESS_CATEGORY,
                    source="xsafety",
                    category=category,
                )
                for row, text in enumerate(_first_column(file))
                if text
            ]
    if not prompts:
        raise DataError(f"{path}: no language folder (ar, bn, de, ...) in this folder. Give XSafety's top folder.")
    return prompts


def _category_files(folder: Path) -> dict[str, Path]:
    files = {}
    for file in sorted(item for item in folder.iterdir() if item.suffix.lower() in (".csv", ".xlsx")):
        stem = file.stem.removesuffix("_n").removesuffix("_en")
        category = MISSPELT.get(stem, stem)
        if stem in STRAY:
            continue
        if category not in CATEGORIES or category in files:
            raise DataError(f"{file}: not one file of one XSafety category. Remove it or restore the original layout.")
        files[category] = file
    if missing := [category for category in CATEGORIES if category not in files]:
        raise DataError(f"{folder}: the category {missing[0]} is missing. Restore the original 14 files.")
    return files


def _first_column(file: Path) -> list[str]:
    if file.suffix.lower() == ".xlsx":
        return _first_column_of_workbook(file)
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            return [clean(row[0] if row else "") for row in csv.reader(opened)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a UTF-8 CSV file ({error}). Restore the original file.") from error


def _first_column_of_workbook(file: Path) -> list[str]:
    with named_extras():
        import openpyxl
    try:
        workbook = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
        try:
            rows = workbook.worksheets[0].iter_rows(max_col=1, values_only=True)
            cells = [clean(row[0] or "") for row in islice(rows, LONGEST_SHEET + 1)]
        finally:
            workbook.close()
    except Exception as error:  # whatever the parsers of ZIP, XML and numbers inside openpyxl raise
        raise DataError(f"{file}: not a readable Excel file ({error}). Restore the original file.") from error
    if len(cells) > LONGEST_SHEET:
        raise DataError(f"{file} claims to have more than {LONGEST_SHEET:,} rows. Restore the original file.")
    return cells
