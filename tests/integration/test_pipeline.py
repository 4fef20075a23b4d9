"""Every stage on every family, from files, on tiny random models."""

import json

import pytest

from conftest import FAMILIES, build_model
from lasa.data.prompt_tables import write_prompts
from lasa.errors import ArtifactError, DataError
from lasa.files.artifacts import read_json
from lasa.interpreter.study import read_point_of
from lasa.pipeline import locate, run_recipe
from lasa.run.folder import RunFolder
from lasa.run.recipe import check_recipe
from miniature import LANGUAGES, SYSTEMS, write_model, write_recipe


@pytest.mark.parametrize("family", FAMILIES)
def test_every_stage_runs_on_every_family(family, tokenizer, tmp_path):
    write_model(tmp_path / "model", tokenizer, family)
    report = run_recipe(check_recipe(write_recipe(tmp_path), "test"), tmp_path / "run")
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert report.is_file()
    assert list(metrics["systems"]) == list(SYSTEMS)
    assert metrics["bottleneck"]["used_layer"] == 2
    for system in (*metrics["systems"].values(), *metrics["splits"]["templates"]["systems"].values()):
        assert set(system["languages"]) == set(LANGUAGES)
        assert system["languages"]["sw"]["asr"]["n"] == 3
    samples = (tmp_path / "run" / "samples" / "lasa.jsonl").read_text("utf-8").splitlines()
    assert len(samples) == 2 * 6 * len(LANGUAGES)
    assert all(json.loads(line)["score"] is not None for line in samples)
    assert {(c["a"], c["group"]) for c in metrics["comparisons"]} >= {("base", "seen"), ("surface-kto", "unseen")}


def test_the_bottleneck_of_a_run_belongs_to_its_model(llama, tokenizer, tmp_path):
    recipe = check_recipe(write_recipe(tmp_path), "test")
    for name in ("run", "again"):
        locate(RunFolder(tmp_path / name, recipe), llama, tokenizer)
    found = tmp_path / "run" / "bottleneck.json"
    assert found.read_bytes() == (tmp_path / "again" / "bottleneck.json").read_bytes()
    assert read_point_of(llama, found, None, None) == (2, "last")
    with pytest.raises(ArtifactError, match="found on another model"):
        read_point_of(build_model("llama", tokenizer, seed=1), found, None, None)


def test_prompts_that_are_not_parallel_are_refused_before_they_are_read(llama, tokenizer, prompts, tmp_path):
    recipe = check_recipe(write_recipe(tmp_path), "test")
    write_prompts(tmp_path / "search.jsonl", [prompt for prompt in prompts if prompt.language == "en"])
    with pytest.raises(DataError, match="all in one language"):
        locate(RunFolder(tmp_path / "run", recipe), llama, tokenizer)
    assert not (tmp_path / "run" / "hidden_states").exists()
