import pytest

from lasa.data.prompt_file import PromptFile
from lasa.data.prompt_tables import read_prompts, write_prompts
from lasa.errors import DataError
from lasa.models.hidden_states import read_to_folder


def test_rows_are_those_of_the_reader_in_memory(tmp_path, prompts):
    path = tmp_path / "prompts.jsonl"
    write_prompts(path, prompts)
    stored = PromptFile(path)
    assert list(stored) == read_prompts(path) == prompts
    assert stored[-1] == prompts[-1] and stored[3:9:2] == prompts[3:9:2] and len(stored) == len(prompts)
    with pytest.raises(IndexError):
        stored[len(prompts)]


def test_the_reader_of_hidden_states_takes_it_for_the_prompts(tmp_path, llama, tokenizer, prompts, monkeypatch):
    monkeypatch.setattr("lasa.models.hidden_states.SHARD_ROWS", 4)
    write_prompts(tmp_path / "prompts.jsonl", prompts)
    first = read_to_folder(llama, tokenizer, PromptFile(tmp_path / "prompts.jsonl"), [2], tmp_path / "states")
    monkeypatch.setattr("lasa.models.hidden_states._read_one_batch", lambda *_: pytest.fail("read again"))
    second = read_to_folder(llama, tokenizer, prompts, [2], tmp_path / "states")
    assert first.manifest == second.manifest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows"),
        (b"\n \n", "has no rows"),
        (b'{"messages": "a", "language": "xx"}\n', "row 1, column 'language': Unknown language"),
        (b'{"messages": "a", "language": "en"}\n\n{"mess', "row 2 is not valid JSON"),
        (b'{"messages": "\xff"}\n', "row 1 is not UTF-8"),
    ],
)
def test_a_damaged_row_is_named(tmp_path, content, message):
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(PromptFile(tmp_path / "p.jsonl"))
    with pytest.raises(DataError, match="No such prompt file"):
        PromptFile(tmp_path / "none.jsonl")
