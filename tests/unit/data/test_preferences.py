"""Preferences in the shapes that people publish them in. Nothing here says anything harmful."""

import json

import pytest

from lasa.data.preferences import Preference, read_preferences, write_preferences
from lasa.data.prompts import user_prompt
from lasa.data.sources import load_preferences, source_hash
from lasa.errors import DataError


def write_rows(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def turns(*texts):
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def test_what_is_written_is_read(tmp_path):
    rows = [
        Preference(user_prompt("a", "sw", "chai?", harmful=True, source="here"), "no", "yes", "rejected"),
        Preference(user_prompt("b", "en", "tea?", harmful=False, source="there"), "yes", None),
    ]
    write_preferences(tmp_path / "rows.jsonl", rows)
    assert read_preferences(tmp_path / "rows.jsonl") == rows


@pytest.mark.parametrize("prompt", [{}, {"prompt": "x"}, {"prompt": turns("x")}], ids=["none", "text", "messages"])
def test_answers_may_be_whole_conversations(prompt, tmp_path):
    row = {**prompt, "chosen": turns("x", "good"), "rejected": turns("x", "bad"), "language": "en", "harmful": False}
    (found,) = read_preferences(write_rows(tmp_path / "rows.jsonl", row))
    assert (list(found.prompt.messages), found.chosen, found.rejected) == (turns("x"), "good", "bad")


def test_columns_label_and_language_are_declared(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", {"question": "x", "good": "a", "bad": "b"})
    declared = f"{path}?prompt=question&chosen=good&rejected=bad&in_language=sw&label=harmful"
    (found,) = load_preferences(declared)
    assert (found.prompt.language, found.prompt.harmful, found.chosen, found.rejected) == ("sw", True, "a", "b")
    assert source_hash(declared) == source_hash(str(path))
    with pytest.raises(DataError, match="cannot declare 'worse'; choose of prompt, chosen, rejected"):
        load_preferences(f"{path}?worse=bad")


def test_several_sources_are_one_table(tmp_path):
    paths = [
        write_rows(tmp_path / f"{n}.jsonl", {"prompt": n, "chosen": "a", "language": "en", "harmful": 0}) for n in "xy"
    ]
    assert [one.prompt.text for one in load_preferences(f"{paths[0]} + {paths[1]}")] == ["x", "y"]


PKU = {
    "prompt": "q", "response_0": "first", "response_1": "second", "is_response_0_safe": True,
    "is_response_1_safe": True, "better_response_id": 1, "safer_response_id": 0,
    "response_0_severity_level": 0, "response_0_harm_category": {"Privacy Violation": False},
}  # fmt: skip


@pytest.mark.parametrize(
    ("safe", "harmful", "answers"),
    [((True, True), None, [("second", None)]), ((True, False), True, [("first", "second")]),
     ((False, True), True, [("second", "first")]), ((False, False), True, [(None, "first"), (None, "second")])],
)  # fmt: skip
def test_of_pku_saferlhf_an_unsafe_answer_is_never_desirable(safe, harmful, answers, tmp_path):
    row = {**PKU, "is_response_0_safe": safe[0], "is_response_1_safe": safe[1]}
    write_rows(tmp_path / "data" / "Alpaca-7B" / "train.jsonl", row)
    found = load_preferences(f"pku_saferlhf:{tmp_path / 'data'}")
    assert [(one.chosen, one.rejected) for one in found] == answers
    assert {(one.prompt.harmful, one.prompt.language, one.prompt.source) for one in found} == {
        (harmful, "en", "pku_saferlhf")
    }
    assert len({one.prompt.query_id for one in found}) == 1


def test_what_is_no_pku_saferlhf_is_refused(tmp_path):
    with pytest.raises(DataError, match="no column 'is_response_0_safe'"):
        load_preferences(f"pku_saferlhf:{write_rows(tmp_path / 'a.jsonl', {**UNSCORED, **dict.fromkeys(PAIR, 'x')})}")
    with pytest.raises(DataError, match="row 1: the labels of the answers"):
        load_preferences(f"pku_saferlhf:{write_rows(tmp_path / 'b.jsonl', {**PKU, 'is_response_0_safe': 'yes'})}")


PAIR = ("prompt", "response_0", "response_1")
UNSCORED = {"source": "flan", "instruction": "q", "completions": [{"model": "m", "response": "a"}]}


def scored(*scores):
    completions = [
        {"model": f"m{n}", "response": f"answer {n}", "fine-grained_score": score, "overall_score": 10.0 - score}
        for n, score in enumerate(scores)
    ]
    return {"source": "flan", "instruction": f"q{scores}", "models": [], "completions": completions}


def test_of_ultrafeedback_the_best_and_the_worst_answer_are_a_pair(tmp_path):
    empty = scored(5.0, 4.0)
    empty["completions"][0]["response"] = " "
    rows = [scored(3.0, 4.5, 1.25), scored(2.0, 2.0), scored(1.0), scored(), empty]
    path = write_rows(tmp_path / "flan.jsonl", *rows)
    (found,) = load_preferences(f"ultrafeedback:{path.parent}")
    assert (found.chosen, found.rejected) == ("answer 1", "answer 2")
    assert (found.prompt.harmful, found.prompt.language, found.prompt.source) == (False, "en", "ultrafeedback")
    with pytest.raises(DataError, match="row 1: no completions with 'response' and 'fine-grained_score'"):
        load_preferences(f"ultrafeedback:{write_rows(tmp_path / 'other.jsonl', UNSCORED)}")


BINARISED = {
    "prompt": "q", "prompt_id": "0f", "chosen": turns("q", "good"), "rejected": turns("q", "bad"),
    "messages": turns("q", "good"), "score_chosen": 8.0, "score_rejected": 5.0,
}  # fmt: skip


def test_the_binarised_ultrafeedback_is_read_from_its_parquet_files(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "data").mkdir()
    for split, row in (("train_prefs", BINARISED), ("test_prefs", {**BINARISED, "prompt": "other"})):
        table = pyarrow.Table.from_pylist([row, {**row, "chosen": turns("q", ""), "rejected": turns("q", " ")}])
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    (found,) = load_preferences(f"ultrafeedback:{tmp_path}")
    assert (found.prompt.text, found.chosen, found.rejected) == ("q", "good", "bad")


def test_a_dataset_of_the_hub_is_a_source_of_preferences(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(*args, **rest):
        asked.append((args, rest))
        return datasets.Dataset.from_list([BINARISED])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    declared = "split=train_prefs&revision=abc&query_id=prompt_id&in_language=en&label=benign"
    (found,) = load_preferences(f"hf:owner/name?{declared}")
    assert (found.prompt.source, found.prompt.query_id, found.chosen, found.rejected) == (
        "owner/name", "0f", "good", "bad",
    )  # fmt: skip
    assert asked == [(("owner/name", None), {"split": "train_prefs", "revision": "abc"})]
    assert load_preferences("ultrafeedback:hf:owner/name?split=train_prefs")[0].chosen == "good"
    with pytest.raises(DataError, match="Dataset 'owner/name', split 'train': row 1, column 'language'"):
        load_preferences("hf:owner/name?label=benign")
