"""Every stage on every family, from files, on tiny random models."""

import json

import pytest

from conftest import FAMILIES
from lasa.artifacts import read_json
from lasa.pipeline import run_pipeline
from lasa.recipe import check_recipe
from miniature import LANGUAGES, SYSTEMS, write_model, write_recipe


@pytest.mark.parametrize("family", FAMILIES)
def test_every_stage_runs_on_every_family(family, tokenizer, tmp_path):
    write_model(tmp_path / "model", tokenizer, family)
    report = run_pipeline(check_recipe(write_recipe(tmp_path), "test"), tmp_path / "run")
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
