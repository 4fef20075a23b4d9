import json

import pytest

from lasa.errors import DataError
from lasa.prompts import Columns, Prompt, check_parallel, read_prompts, user_prompt, write_prompts


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_wide_table_gives_one_prompt_per_filled_cell(tmp_path):
    path = write(tmp_path, "wide.csv", "id,en,sw,jw\n7,hello,habari,halo\n8,bye,,dadah\n")
    prompts = read_prompts(path, harmful=False)
    assert [(p.query_id, p.language, p.text) for p in prompts] == [
        ("7", "en", "hello"), ("7", "sw", "habari"), ("7", "jv", "halo"), ("8", "en", "bye"), ("8", "jv", "dadah"),
    ]  # fmt: skip
    assert all(p.harmful is False for p in prompts)


def test_a_bom_and_line_breaks_inside_cells_survive(tmp_path):
    path = tmp_path / "bom.csv"
    path.write_bytes('\ufeffid,en,sw\r\n0,"a\nb",c\r\n'.encode())
    assert [p.text for p in read_prompts(path)] == ["a\nb", "c"]
    assert read_prompts(path)[0].query_id == "0"


def test_a_long_table_reads_labels_and_declared_columns(tmp_path):
    path = write(tmp_path, "long.csv", "q,lang,bad,n\nhello,en,harmful,1\nciao,it,0,1\n")
    columns = Columns(prompt="q", language="lang", harmful="bad", query_id="n")
    assert [(p.query_id, p.harmful) for p in read_prompts(path, columns)] == [("1", True), ("1", False)]


def test_what_is_written_is_read_back(tmp_path):
    prompts = [
        user_prompt("1", "en", "hi", harmful=True, source="s", category="c", details={"k": 1}),
        Prompt("2", "th", ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})),
    ]
    write_prompts(tmp_path / "p.jsonl", prompts)
    read = read_prompts(tmp_path / "p.jsonl")
    assert read[0] == prompts[0] and read[1].messages == prompts[1].messages


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "id,question\n1,x\n", "no column 'prompt' and no column named after a language code"),
        ("a.csv", "prompt\nhello\n", "no column 'language'"),
        ("a.csv", "prompt,language\nhello,xx\n", "row 1, column 'language': Unknown language code 'xx'"),
        ("a.csv", "prompt,language\nhi,en\n  ,it\n", "row 2, column 'prompt': the prompt is empty"),
        ("a.csv", "id,en,sw\n1,hi,jambo\n2,,\n", "row 2: the prompt is empty in every language column"),
        ("a.csv", "id,en,sw\n1,hi,  \n", "row 1, column 'sw': the prompt is empty"),
        ("a.csv", "prompt,language,harmful\nhi,en,maybe\n", "row 1, column 'harmful'"),
        ("a.csv", "prompt,language\nhi,en,extra\n", "row 1 has more cells"),
        ("a.csv", "", "no rows"),
        ("a.jsonl", '{"prompt": "x", "language": "en"}\n{broken\n', "row 2 is not valid JSON"),
        ("a.jsonl", "[1]\n", "row 1 is not a JSON object"),
        ("a.json", '{"a": 1}', "expected a list of objects"),
        ("a.jsonl", json.dumps({"messages": [{"role": "boss", "content": "x"}], "language": "en"}), "needs a role"),
        ("a.jsonl", json.dumps({"messages": [{"role": "assistant", "content": "x"}], "language": "en"}), "last message"),
        ("a.docx", "x", "unknown format"),
    ],
)
def test_a_bad_file_gets_an_error_that_says_where(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        read_prompts(write(tmp_path, name, text))


def test_a_file_that_is_not_there_or_not_text_is_an_error(tmp_path):
    with pytest.raises(DataError, match="No such prompt file"):
        read_prompts(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"prompt,language\nperch\xe9,it\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_prompts(tmp_path / "latin.csv")


def test_parallel_prompts_need_two_languages_and_two_queries():
    with pytest.raises(DataError, match="in one language"):
        check_parallel([user_prompt("1", "en", "a"), user_prompt("2", "en", "b")])
    with pytest.raises(DataError, match="one query only"):
        check_parallel([user_prompt("1", "en", "a"), user_prompt("1", "it", "b")])
