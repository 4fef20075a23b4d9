from pathlib import Path

import openpyxl
import pytest

from lasa.data.corpora.xsafety import CATEGORIES, load_xsafety
from lasa.errors import DataError


def write(folder: Path, names: dict[str, str] | None = None, rows: dict[str, str] | None = None) -> None:
    folder.mkdir()
    for category in CATEGORIES:
        name = (names or {}).get(category, f"{category}.csv")
        content = (rows or {}).get(category, "first\r\nsecond\r\nthird")
        (folder / name).write_bytes(b"\xef\xbb\xbf" + content.encode())


def test_every_spelling_of_a_category_is_the_same_category(tmp_path: Path) -> None:
    write(tmp_path / "en", {"Insult": "Insult_n.csv", CATEGORIES[0]: f"{CATEGORIES[0]}_en.csv"})
    write(tmp_path / "ru", {CATEGORIES[0]: "Crimes_And_Illegal_Activitie.csv"})
    write(tmp_path / "sp")
    (tmp_path / "figures").mkdir()
    prompts = load_xsafety(tmp_path)
    assert len(prompts) == 3 * 14 * 3
    assert len({p.query_id for p in prompts}) == 14 * 3
    assert {p.language for p in prompts} == {"en", "ru", "es"}
    assert {p.category for p in prompts if p.harmful is False} == {"commonsense"}
    assert prompts[0].text == "first"


def test_rows_stay_parallel_over_empty_rows_extra_columns_and_newlines(tmp_path: Path) -> None:
    write(tmp_path / "en", rows={"Insult": 'first,,\r\n"sec\r\nond",\r\nthird,'})
    write(tmp_path / "ru", rows={"Insult": 'first\r\n""\r\nthird'})
    insults = [(p.language, p.query_id, p.text) for p in load_xsafety(tmp_path) if p.category == "Insult"]
    assert insults == [
        ("en", "xsafety:Insult/0", "first"),
        ("en", "xsafety:Insult/1", "sec\nond"),
        ("en", "xsafety:Insult/2", "third"),
        ("ru", "xsafety:Insult/0", "first"),
        ("ru", "xsafety:Insult/2", "third"),
    ]


def test_excel_files_read_like_csv(tmp_path: Path) -> None:
    write(tmp_path / "bn")
    (tmp_path / "bn" / "Insult.csv").unlink()
    workbook = openpyxl.Workbook()
    for text in ("first", None, "third"):
        workbook.active.append([text, None])
    workbook.save(tmp_path / "bn" / "Insult_n.xlsx")
    insults = [(p.query_id, p.text) for p in load_xsafety(tmp_path) if p.category == "Insult"]
    assert insults == [("xsafety:Insult/0", "first"), ("xsafety:Insult/2", "third")]


def test_a_damaged_excel_file_is_a_clear_error(tmp_path: Path) -> None:
    write(tmp_path / "bn", {"Insult": "Insult_n.xlsx"})
    with pytest.raises(DataError, match=r"Insult_n\.xlsx: not a readable Excel file"):
        load_xsafety(tmp_path)


def test_the_second_hindi_common_sense_file_is_ignored(tmp_path: Path) -> None:
    write(tmp_path / "hi")
    (tmp_path / "hi" / "commen_sense.csv").write_text("other\n", encoding="utf-8")
    assert len(load_xsafety(tmp_path)) == 14 * 3


def test_a_missing_or_unknown_category_is_named(tmp_path: Path) -> None:
    write(tmp_path / "en")
    (tmp_path / "en" / "Insult.csv").rename(tmp_path / "en" / "Gardening.csv")
    with pytest.raises(DataError, match=r"Gardening\.csv"):
        load_xsafety(tmp_path)
    (tmp_path / "en" / "Gardening.csv").unlink()
    with pytest.raises(DataError, match="Insult is missing"):
        load_xsafety(tmp_path)
