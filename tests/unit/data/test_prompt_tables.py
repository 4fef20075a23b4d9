import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lasa.data.preferences import read_preferences
from lasa.data.prompt_tables import Columns, read_prompts
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


def test_the_cells_of_a_row_without_an_identifier_are_translations_of_each_other_and_of_nothing_else(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"en": "a", "sw": "b"}, {"en": "c", "sw": ""}])
    first, second, third = (prompt.query_id for prompt in read_prompts(path))
    assert first == second != third
    assert [prompt.query_id for prompt in read_prompts(path)] == [first, second, third]


def test_two_files_without_identifiers_share_no_question(tmp_path):
    (tmp_path / "other").mkdir()
    english = read_prompts(write(tmp_path / "p.jsonl", [{"en": "a"}, {"en": "b"}]))
    swahili = read_prompts(write(tmp_path / "other" / "p.jsonl", [{"sw": "c"}, {"sw": "d"}]))
    assert not {p.query_id for p in english} & {p.query_id for p in swahili}
    long = read_prompts(write(tmp_path / "l.jsonl", [{"prompt": "a", "language": "en"}] * 2))
    assert long[0].query_id != long[1].query_id


def test_zero_is_an_identifier(tmp_path):
    assert seen(read_prompts(write(tmp_path / "p.jsonl", [{"id": 0, "en": "a", "sw": "b"}]))) == [
        ("0", "en", "a"),
        ("0", "sw", "b"),
    ]
    pair = {"id": 0, "prompt": "a", "language": "en", "harmful": True, "chosen": "x"}
    assert [one.prompt.query_id for one in read_preferences(write(tmp_path / "q.jsonl", [pair]))] == ["0"]


@pytest.mark.parametrize("missing", [None, "", " ", float("nan"), "NaN", "null"])
def test_a_row_without_its_identifier_joins_no_other_and_is_named(tmp_path, missing):
    rows = [{"id": 2, "prompt": "a", "language": "en"}, {"id": missing, "prompt": "b", "language": "en"}]
    with pytest.raises(DataError, match=r"row 2, column 'id': there is no id"):
        read_prompts(write(tmp_path / "p.jsonl", rows))
    with pytest.raises(DataError, match=r"row 2, column 'id': there is no id"):
        read_prompts(write(tmp_path / "w.jsonl", [{"id": 2, "en": "a"}, {"id": missing, "en": "b"}]))
    pairs = [{"id": 2, "prompt": "a", "language": "en", "harmful": True, "chosen": "x"}]
    pairs.append({**pairs[0], "id": missing})
    with pytest.raises(DataError, match=r"row 2, column 'id': there is no id"):
        read_preferences(write(tmp_path / "q.jsonl", pairs))


def test_a_parquet_column_with_a_gap_is_no_cluster(tmp_path):
    table = pa.table({"id": [1.0, float("nan")], "en": ["a", "b"]})
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(DataError, match="row 2, column 'id'"):
        read_prompts(tmp_path / "p.parquet")


def test_a_declared_language_column_that_is_missing_is_an_error(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"en": "a", "sw": "b"}])
    with pytest.raises(DataError, match="no column 'th'"):
        read_prompts(path, Columns(languages=("en", "th")))
