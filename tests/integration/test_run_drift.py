"""What a run records about its interpreter: the audit, what it generalises to, and its drift on each trained model."""

import json

import pytest

from lasa.alignment import signal
from lasa.data.prompt_tables import write_prompts
from lasa.data.world import tables
from lasa.files.artifacts import read_json
from lasa.interpreter.probe import load_interpreter
from lasa.pipeline import run_recipe
from lasa.run.recipe import check_recipe
from lasa.run.systems import find_system


@pytest.fixture
def recipe(tmp_path, model_folder):
    """A base and one trained, guarded system, whose interpreter is fitted again."""
    deeds = tables.safety_deeds("train")[::12]
    write_prompts(tmp_path / "search.jsonl", tables.parallel_prompts(deeds[:12], ("en", "zh"), templates=(0,)))
    write_prompts(tmp_path / "train.jsonl", tables.interpreter_prompts(("en", "zh"), 24))
    write_prompts(tmp_path / "test.jsonl", tables.evaluation_prompts("combinations", 3, ("en", "zh", "sw")))
    rows = [
        {
            "prompt": list(one.prompt.messages),
            "chosen": one.chosen,
            "rejected": one.rejected,
            "language": one.prompt.language,
            "query_id": one.prompt.query_id,
            "harmful": one.prompt.harmful,
        }
        for one in tables.preferences(("en",), 6, 6, ("en", "zh"))
    ]
    (tmp_path / "preferences.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    trained = {"method": "sft", "guarded": True, "learning_rate": 0.05, "steps": 3, "batch_size": 4, "warmup_steps": 1}
    benign = [prompt for prompt in tables.interpreter_prompts(("sw",), 60, share="dev") if not prompt.harmful]
    write_prompts(tmp_path / "calibration.jsonl", benign)
    return {
        "model": {"path": str(model_folder)},
        "seen_languages": ["en", "zh"],
        "layer_search": {"prompts": [str(tmp_path / "search.jsonl")], "layer": 2, "resamples": 50},
        "interpreter": {
            "train": [str(tmp_path / "train.jsonl")],
            "calibration": [str(tmp_path / "calibration.jsonl")],
            "false_refusals": 0.2,
            "per_language": True,
            "epochs": 2,
            "seeds": 1,
            "kind": "linear",
        },
        "alignment": {"preferences": str(tmp_path / "preferences.jsonl"), "drift_bound": 0.001, "refit": True},
        "systems": {"base": {}, "tuned": trained},
        "evaluation": {"benchmarks": {"combinations": str(tmp_path / "test.jsonl")}, "max_new_tokens": 4},
    }


def test_the_states_of_the_base_that_drift_is_measured_from_are_not_read_again(recipe, tmp_path, monkeypatch):
    recipe["systems"]["again"] = recipe["systems"]["tuned"]
    asked, read = [], signal.read_hidden_states

    def note(model, tokenizer, prompts, *args, **kwargs):
        asked.append(len(prompts))
        return read(model, tokenizer, prompts, *args, **kwargs)

    monkeypatch.setattr(signal, "read_hidden_states", note)
    run_recipe(check_recipe(recipe, "test"), tmp_path / "run")
    probes, benign = asked[:2]  # of a trained model: for the drift, and for thresholds
    assert asked == [probes, benign] * 2
    assert read_json(tmp_path / "run" / "systems" / "tuned" / "drift.json")["mean_shift"] > 0


def test_a_run_measures_drift_and_serves_the_interpreter_that_was_fitted_again(recipe, tmp_path):
    run = tmp_path / "run"
    run_recipe(check_recipe(recipe, "test"), run)
    metrics = read_json(run / "metrics.json")
    drift = read_json(run / "systems" / "tuned" / "drift.json")
    assert drift["mean_shift"] > 0 and drift["bound"] == 0.001
    assert metrics["systems"]["tuned"]["drift"] == drift
    assert "drift" not in metrics["systems"]["base"]
    base, own = (load_interpreter(run / name) for name in ("interpreter", "systems/tuned/interpreter"))
    assert base.config.temperature != own.config.temperature
    assert "sw" in base.config.language_thresholds and "sw" in own.config.language_thresholds
    assert find_system(run=run, system="tuned").guard().interpreter.config == own.config
    assert find_system(run=run, system="base").guard().interpreter.config == base.config
    interpreter = metrics["interpreter"]
    assert set(interpreter["left_out_languages"]) == {"en", "zh"}
    assert set(interpreter["perturbations"]) >= {"typos", "code_switch"}
    assert interpreter["audit"]["leaks"] == []
    assert interpreter["late_layer"]["layer"] == 4
