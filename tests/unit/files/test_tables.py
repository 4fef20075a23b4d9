"""Files that once ended in a traceback, were misread, or could be: each is a named error now, or read rightly."""

import json
import sys

import pyarrow
import pyarrow.parquet
import pytest

from lasa.data.corpora import load_corpus
from lasa.data.prompt_tables import read_prompts
from lasa.errors import DataError
from lasa.files.tables import read_rows


def file(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"en": ' + "1" * 5000 + "}\n", r"a\.jsonl: row 1 is not valid JSON \(Exceeds the limit"),
        ("a.json", '[{"en": ' + "1" * 5000 + "}]", r"a\.json is not valid JSON \(Exceeds the limit"),
        ("a.jsonl", '{"en": "a"}\n{"en": "\\ud800"}\n', r"row 2 has an escape that is half of a character"),
        ("a.json", "[" * 100_000, r"not valid JSON \(maximum recursion"),
        ("a.jsonl", '{"en": "a"}\n[1]\n', r"row 2 is not a JSON object"),
        ("a.csv", "en,sw,en\na,b,c\n", r"two columns are called 'en'"),
        ("a.csv", "en,sw\na,b,c\n", r"row 1 has more cells"),
        ("a.csv", b"en\n\xff\n", r"not UTF-8 text at byte 3"),
        ("a.csv", "en\n" + "a" * 10_000_001 + "\n", r"not a readable table \(field larger"),
        ("a.csv", "", r"has no rows"),
        ("a.parquet", b"PAR1\0\0PAR1", r"not a readable Parquet file"),
        ("a.xls", "x", r"unknown format '\.xls'"),
    ],
)
def test_a_hostile_file_is_refused_by_name(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read_rows(file(tmp_path / name, content))


def test_values_that_json_does_not_have_are_missing(tmp_path):
    rows = read_rows(file(tmp_path / "a.jsonl", '{"en": "a", "category": NaN, "source": -Infinity}\n'))
    assert rows == [{"en": "a", "category": None, "source": None}]


def test_half_a_character_that_has_its_other_half_is_fine(tmp_path):
    assert read_rows(file(tmp_path / "a.jsonl", '{"en": "\\ud83d\\ude00"}\n')) == [{"en": "\U0001f600"}]


def test_times_and_bytes_in_details_become_text(tmp_path):
    table = pyarrow.table({"prompt": ["a"], "language": ["en"], "details": [{"at": pyarrow.scalar(0, "date32")}]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    [prompt] = read_prompts(tmp_path / "a.parquet")
    assert json.loads(json.dumps(prompt.to_json()))["details"] == {"at": "1970-01-01"}


@pytest.mark.parametrize(
    ("corpus", "name", "rows", "message"),
    [
        ("xstest", "x.jsonl", [{"prompt": "a", "type": "t", "id": "1"}, {"id": "2"}], "row 2 has no 'prompt'"),
        ("harmbench", "h.jsonl", [dict.fromkeys(["Behavior", "FunctionalCategory", "SemanticCategory", "Tags",
                                                 "ContextString", "BehaviorID"], 5)], "expected a text, found int"),
        ("lasa_ssi_harmful", "h.json", [{"prompt": "a", "lingual": 3, "original_idx": 1}], "Unknown language code '3'"),
        ("global_mmlu_lite", "g.jsonl", [{"label": "A", "prompts": [{"question": "q", "option_a": "1", "option_b": "2",
          "option_c": "3", "option_d": "4"}], "metadata": {"sample_id": "a/b", "language": "sw", "subject": "s",
          "cultural_sensitivity_label": []}}], "not a Global-MMLU-Lite sample"),
    ],
)  # fmt: skip
def test_a_row_of_a_corpus_that_is_not_like_the_others_is_named(tmp_path, corpus, name, rows, message):
    content = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    with pytest.raises(DataError, match=message):
        load_corpus(corpus, file(tmp_path / name, content))


def test_a_sheet_that_claims_to_be_endless_is_refused(tmp_path, monkeypatch):
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed: pip install lasa[evaluate]")
    from lasa.data.corpora import xsafety

    monkeypatch.setattr(xsafety, "LONGEST_SHEET", 100)
    workbook = openpyxl.Workbook()
    workbook.active.cell(row=1_000_000, column=1, value="x")
    workbook.save(tmp_path / "Insult.xlsx")
    with pytest.raises(DataError, match="claims to have more than 100 rows"):
        xsafety._first_column(tmp_path / "Insult.xlsx")


opened: list[str] | None = None


def _record(event, arguments):
    if opened is not None and event == "open" and isinstance(arguments[0], str | bytes):
        opened.append(arguments[0] if isinstance(arguments[0], str) else arguments[0].decode())


sys.addaudithook(_record)  # cannot be taken away again; it does nothing while `opened` is None


def test_no_path_in_a_file_is_opened(tmp_path, monkeypatch):
    secret = file(tmp_path / "secret.txt", "x")
    cell = str(secret)
    row = {"prompt": cell, "language": "en", "id": cell, "source": f"file://{cell}", "details": {"path": cell}}
    tags = {"id": cell, "source": cell, "tags": repr([cell]), "en": cell}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    file(tmp_path / "a.jsonl", json.dumps(row))
    file(tmp_path / "a.json", json.dumps([row]))
    file(tmp_path / "multijail.jsonl", json.dumps(tags))
    monkeypatch.setattr(sys.modules[__name__], "opened", [])
    for suffix in ("jsonl", "json", "parquet"):
        assert read_prompts(tmp_path / f"a.{suffix}")[0].text == cell
    load_corpus("multijail", tmp_path / "multijail.jsonl")
    found = [path for path in opened if path.startswith(str(tmp_path))]
    assert str(secret) not in found and str(tmp_path / "a.jsonl") in found
