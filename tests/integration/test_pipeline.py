"""Every stage on every family, from files, on tiny random models."""

import json

import pytest

from conftest import FAMILIES, build_model
from lasa.alignment.rows import Preference
from lasa.artifacts import read_json
from lasa.embedded.world import tables
from lasa.errors import ArtifactError
from lasa.pipeline import run_pipeline
from lasa.prompts import write_prompts
from lasa.recipe import check_recipe

LANGUAGES = ("en", "zh", "sw")
SYSTEMS = {
    "base": {},
    "surface-sft": {"method": "sft"},
    "surface-kto": {"method": "kto"},
    "interpreter-only": {"guarded": True},
    "lasa": {"method": "kto", "signal": "interpreter", "guarded": True},
}


def write_preferences(path, preferences: list[Preference]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for one in preferences:
            row = {
                "prompt": list(one.prompt.messages),
                "chosen": one.chosen,
                "rejected": one.rejected,
                "language": one.prompt.language,
                "query_id": one.prompt.query_id,
                "harmful": one.prompt.harmful,
            }
            file.write(json.dumps(row) + "\n")


@pytest.fixture
def recipe(tmp_path):
    """A recipe over small files, for a model saved at tmp_path/model."""
    deeds = tables.safety_deeds("train")[::12]
    write_prompts(tmp_path / "search.jsonl", tables.parallel_prompts(deeds[:12], LANGUAGES, templates=(0,)))
    write_prompts(tmp_path / "train.jsonl", tables.interpreter_prompts(LANGUAGES, 24))
    write_prompts(tmp_path / "test.jsonl", tables.evaluation_prompts("combinations", 3, LANGUAGES))
    write_prompts(tmp_path / "hard.jsonl", tables.evaluation_prompts("templates", 3, LANGUAGES))
    write_preferences(tmp_path / "preferences.jsonl", tables.preferences(("en",), 6, 6, LANGUAGES))
    training = {"learning_rate": 1e-3, "steps": 2, "batch_size": 4, "warmup_steps": 1}
    return {
        "model": {"path": str(tmp_path / "model")},
        "seen_languages": ["en", "zh"],
        "layer_search": {"prompts": [str(tmp_path / "search.jsonl")], "layer": 2, "resamples": 50},
        "interpreter": {"train": [str(tmp_path / "train.jsonl")], "epochs": 2, "seeds": 1, "kind": "linear"},
        "alignment": {"preferences": str(tmp_path / "preferences.jsonl")},
        "systems": {name: {**training, **system} if "method" in system else system for name, system in SYSTEMS.items()},
        "evaluation": {
            "benchmarks": {"combinations": str(tmp_path / "test.jsonl"), "templates": str(tmp_path / "hard.jsonl")},
            "judge": "embedded-world",
            "max_new_tokens": 4,
        },
    }


def save(model, tokenizer, folder) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_stage_runs_on_every_family(family, tokenizer, recipe, tmp_path):
    save(build_model(family, tokenizer), tokenizer, tmp_path / "model")
    report = run_pipeline(check_recipe(recipe, "test"), tmp_path / "run")
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


def test_a_stopped_run_goes_on_and_gives_the_same_metrics(tokenizer, recipe, tmp_path, monkeypatch):
    from lasa import pipeline

    save(build_model("llama", tokenizer), tokenizer, tmp_path / "model")
    checked = check_recipe(recipe, "test")
    run_pipeline(checked, tmp_path / "whole")
    whole = pipeline.evaluate

    def stop_at_kto(run, name, *rest):
        if name == "surface-kto":
            raise KeyboardInterrupt
        whole(run, name, *rest)

    monkeypatch.setattr(pipeline, "evaluate", stop_at_kto)
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(checked, tmp_path / "stopped")
    monkeypatch.setattr(pipeline, "evaluate", whole)
    torn = tmp_path / "stopped" / "samples" / "surface-kto.jsonl"
    torn.write_text('{"split": "combi')  # as a kill in the middle of a line leaves it
    run_pipeline(checked, tmp_path / "stopped")
    first, second = (read_json(tmp_path / name / "metrics.json") for name in ("whole", "stopped"))
    del first["seconds"], second["seconds"]
    assert first == second


def test_a_folder_that_holds_another_run_is_refused_and_kept(tokenizer, recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("seed: 1\n")
    with pytest.raises(ArtifactError, match="holds another run"):
        run_pipeline(check_recipe(recipe, "test"), tmp_path / "run")
    assert (tmp_path / "run" / "recipe.yaml").read_text() == "seed: 1\n"


def test_a_folder_with_other_files_is_refused(tokenizer, recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "holiday.jpg").write_text("x")
    with pytest.raises(ArtifactError, match="is not empty and holds no run"):
        run_pipeline(check_recipe(recipe, "test"), tmp_path / "run")


def test_a_second_process_on_the_same_run_is_refused(tokenizer, recipe, tmp_path):
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(ArtifactError, match="Another process"):
        run_pipeline(check_recipe(recipe, "test"), tmp_path / "run")
