import json

import pytest

from lasa.data.prompts import Columns, read_prompts
from lasa.errors import DataError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def seen(prompts):
    return [(p.query_id, p.language, p.text) for p in prompts]


def test_a_column_named_id_holds_identifiers_not_indonesian(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"id": "7", "source": "s", "tags": "['a']", "en": "hello", "sw": "habari"}])
    prompts = read_prompts(path)
    assert seen(prompts) == [("7", "en", "hello"), ("7", "sw", "habari")]
    assert prompts[0].source == "s"


def test_indonesian_can_be_declared(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"query_id": "7", "id": "halo", "en": "hello"}])
    assert seen(read_prompts(path, Columns(languages=("en", "id")))) == [("7", "en", "hello"), ("7", "id", "halo")]


def test_rows_without_an_identifier_are_numbered(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"en": "a", "sw": "b"}, {"en": "c", "sw": ""}])
    assert seen(read_prompts(path)) == [("0", "en", "a"), ("0", "sw", "b"), ("1", "en", "c")]


def test_a_declared_language_column_that_is_missing_is_an_error(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"en": "a", "sw": "b"}])
    with pytest.raises(DataError, match="no column 'th'"):
        read_prompts(path, Columns(languages=("en", "th")))
