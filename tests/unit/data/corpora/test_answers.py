import json

import pytest

from lasa.data.corpora.answers import BEGINNING, half_of
from lasa.data.sources import load_prompts
from lasa.errors import DataError

ROWS = [
    {"prompt": "How?", "answer": "I cannot help. " * 40, "language": "en", "label": "refusal"},
    {"prompt": "How?", "answer": "Take two.", "language": "en", "label": "Compliance"},
    {"prompt": "When?", "answer": "take  two", "language": "en", "label": "compliance"},
    {"prompt": "Where?", "answer": "It depends.", "language": "en", "label": "caution"},
    {"prompt": "Why?", "answer": "Sitaki.", "language": "sw", "label": "refusal", "query_id": "why"},
]


def written(folder, rows):
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_beginnings_of_labelled_answers_stand_in_the_place_of_prompts(tmp_path):
    found = load_prompts(f"labelled_answers:{written(tmp_path, ROWS)}")
    assert [(one.language, one.harmful) for one in found] == [("en", True), ("en", False), ("sw", True)]
    assert found[0].text == ("I cannot help. " * 40)[:BEGINNING].rstrip()
    assert [one.text for one in found[1:]] == ["Take two.", "Sitaki."]
    assert found[0].query_id == found[1].query_id != found[2].query_id


def test_a_split_is_the_half_that_the_judge_is_not_measured_on(tmp_path):
    rows = [{**ROWS[0], "prompt": f"question {n}", "answer": f"answer {n}"} for n in range(40)]
    path = written(tmp_path, rows)
    halves = {half: load_prompts(f"labelled_answers:{path}?split={half}") for half in ("development", "held-out")}
    assert all(halves.values()) and sum(map(len, halves.values())) == 40
    assert {one.text for one in halves["development"]} == {
        row["answer"] for row in rows if half_of(row["prompt"]) == "development"
    }


def test_a_row_without_a_question_is_named(tmp_path):
    with pytest.raises(DataError, match="row 2 has neither a prompt nor a query_id"):
        load_prompts(f"labelled_answers:{written(tmp_path, [ROWS[0], {**ROWS[1], 'prompt': ''}])}")
