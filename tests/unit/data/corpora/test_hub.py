import json
import sys
from pathlib import Path

import pytest

from lasa.data.corpora.hub import load_from_hub
from lasa.data.prompt_tables import Columns
from lasa.data.sources import load_prompts
from lasa.errors import DataError


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    datasets.disable_progress_bars()
    folder = tmp_path / "dataset"
    folder.mkdir()
    return folder


def test_declared_columns_of_a_dataset_become_prompts(dataset: Path) -> None:
    rows = [{"q": "Is tea hot?", "lang": "en", "key": "a"}, {"q": "Chai ni moto?", "lang": "sw", "key": "a"}]
    (dataset / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    columns = Columns(prompt="q", language="lang", query_id="key")
    prompts = load_from_hub(str(dataset), columns, harmful=False)
    assert [(p.query_id, p.language, p.text) for p in prompts] == [
        ("a", "en", "Is tea hot?"),
        ("a", "sw", "Chai ni moto?"),
    ]
    assert {(p.source, p.harmful) for p in prompts} == {(str(dataset), False)}


def test_a_dataset_is_a_source_like_any_other(dataset: Path) -> None:
    rows = [{"en": "Is tea hot?", "sw": "Chai ni moto?", "key": "a"}, {"en": "Tea", "sw": None, "key": "b"}]
    (dataset / "test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    prompts = load_prompts(f"hf:{dataset}?split=test&query_id=key&label=benign")
    assert [(p.query_id, p.language) for p in prompts] == [("a", "en"), ("a", "sw"), ("b", "en")]


def test_an_error_names_the_dataset_and_not_a_file_of_ours(dataset: Path) -> None:
    (dataset / "train.jsonl").write_text(json.dumps({"q": "Is tea hot?"}), encoding="utf-8")
    with pytest.raises(DataError) as raised:
        load_from_hub(str(dataset), Columns(prompt="q"))
    assert f"Dataset {str(dataset)!r}, split 'train': no column 'language'" in str(raised.value)
    assert "parquet" not in str(raised.value)


@pytest.mark.parametrize("arguments", [{"split": "no-such-split"}, {"config": "no-such-config"}])
def test_a_wrong_split_or_configuration_is_a_clear_error(dataset: Path, arguments: dict[str, str]) -> None:
    (dataset / "train.jsonl").write_text(json.dumps({"prompt": "Tea?", "language": "en"}), encoding="utf-8")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_from_hub(str(dataset), **arguments)


def test_a_dataset_that_is_not_there_is_a_clear_error(dataset: Path) -> None:
    with pytest.raises(DataError, match="cannot be loaded"):
        load_from_hub(str(dataset / "absent"))


def test_a_dataset_with_a_loading_script_is_refused_and_not_run(dataset: Path) -> None:
    (dataset / "dataset.py").write_text("raise SystemExit('was run')\n", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_from_hub(str(dataset))
    assert "was run" not in str(sys.exc_info())
