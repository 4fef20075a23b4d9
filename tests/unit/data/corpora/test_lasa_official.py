import json
from pathlib import Path

import pytest

from lasa.data.corpora.lasa_official import (
    load_multijail_1k,
    load_ssi_harmful,
    load_ultrafeedback,
    with_harmbench_ids,
    with_multijail_ids,
)
from lasa.data.prompts import Prompt, user_prompt
from lasa.errors import DataError


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
    return path


@pytest.fixture
def harmbench() -> list[Prompt]:
    return [user_prompt(f"harmbench:id_{n}", "en", f"Behaviour {n}.", source="harmbench") for n in range(4)]


def test_multijail_sample_joins_multijail_by_text(tmp_path: Path) -> None:
    rows = [
        {"id": 0, "prompt": "Habari?", "lingual": "sw", "tag": "['Tea', 'Rain']"},
        {"id": 1, "prompt": "Apa?", "lingual": "jw", "tag": "[]"},
    ]
    prompts = load_multijail_1k(write(tmp_path / "multijail_1k.json", rows))
    assert [(p.query_id, p.language, p.category, p.harmful) for p in prompts] == [
        ("multijail:1k/0", "sw", "Tea", True),
        ("multijail:1k/1", "jv", "", True),
    ]
    questions = [
        user_prompt("multijail:4", "sw", "Habari?"),
        user_prompt("multijail:11", "sw", "Habari?"),
        user_prompt("multijail:4", "jv", "Apa?"),
    ]
    assert [p.query_id for p in with_multijail_ids(prompts, questions)] == ["multijail:4", "multijail:4"]
    with pytest.raises(DataError, match="multijail:1k/0"):
        with_multijail_ids(prompts, questions[2:])


def test_ssi_rows_join_harmbench_by_row(tmp_path: Path, harmbench: list[Prompt]) -> None:
    rows = [
        {"prompt": "Behaviour 2", "lingual": "en", "original_idx": 2, "idx": 0},
        {"prompt": "Tabia 2", "lingual": "sw", "original_idx": 2, "idx": 1},
    ]
    prompts = load_ssi_harmful(write(tmp_path / "harmbench_training.json", rows))
    assert [(p.query_id, p.language, p.source) for p in prompts] == [
        ("harmbench:row/2", "en", "harmbench"),
        ("harmbench:row/2", "sw", "harmbench"),
    ]
    assert [p.query_id for p in with_harmbench_ids(prompts, harmbench)] == ["harmbench:id_2", "harmbench:id_2"]
    with pytest.raises(DataError, match="row 2 of the given HarmBench file"):
        with_harmbench_ids(prompts, harmbench[::-1])
    with pytest.raises(DataError, match="row 2 of the given HarmBench file"):
        with_harmbench_ids(prompts, harmbench[:2])


def test_rows_of_other_corpora_are_not_renamed(harmbench: list[Prompt]) -> None:
    other = user_prompt("multijail:3", "en", "Question")
    assert with_harmbench_ids([other], harmbench) == [other]


def test_ultrafeedback_takes_the_language_from_the_file_name(tmp_path: Path) -> None:
    row = {
        "idx": 3,
        "prompt": "Pitakon\nloro  ",
        "chosen": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Apik"}],
        "rejected": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Elek"}],
    }
    for code in ("jw", "en"):
        write(tmp_path / f"monolingual_first1000_{code}.json", [row])
    prompts = load_ultrafeedback(tmp_path)
    assert [(p.query_id, p.language) for p in prompts] == [("ultrafeedback:3", "en"), ("ultrafeedback:3", "jv")]
    assert prompts[0].text == "Pitakon\nloro"
    assert prompts[0].harmful is False
    assert prompts[0].details == {"chosen": "Apik", "rejected": "Elek"}


@pytest.mark.parametrize("cell", ["text", [], [{"role": "user", "content": "x"}] * 2, None])
def test_an_answer_that_is_no_conversation_is_named(tmp_path: Path, cell: object) -> None:
    good = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    rows = [{"idx": 0, "prompt": "p", "chosen": good, "rejected": cell}]
    with pytest.raises(DataError, match="row 1, column 'rejected'"):
        load_ultrafeedback(write(tmp_path / "monolingual_first1000_sw.json", rows))
