"""Stage 3 alone, from files: resumed, on two processes, watched."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule

from conftest import build_model
from lasa.alignment.rows import Preference, token_rows
from lasa.alignment.trainers import HelpfulnessFloor, TrainingSettings, check_wrapper, train
from lasa.alignment_study import AlignmentTables, align_system
from lasa.artifacts import read_json
from lasa.embedded.world import tables
from lasa.errors import ModelError, RecipeError
from lasa.interpreter_calibration import CalibrationOptions
from lasa.models import load_model
from lasa.prompts import user_prompt, write_prompts
from lasa.recipe import AlignmentSection, SystemSection
from miniature import write_model, write_preferences

pytestmark = pytest.mark.usefixtures("one_thread")

ACCELERATE = Path(__file__).parents[2] / "recipes" / "accelerate"
SYSTEM = {"method": "kto", "learning_rate": 1e-3, "steps": 6, "batch_size": 4, "warmup_steps": 0, "save_steps": 2}


@pytest.fixture
def preferences():
    return tables.preferences(("en",), 6, 6, ("en", "zh"))


def align_to(folder: Path, model, tokenizer, preferences, **settings):
    system, section = SystemSection(**{**SYSTEM, **settings}), AlignmentSection(preferences="-")
    options = CalibrationOptions()
    benign = [one.prompt for one in preferences if not one.prompt.harmful]
    align_system(
        model, tokenizer, None, AlignmentTables(preferences, benign=benign), system, section, options, folder,
        name="test", base="tiny", seed=0,
    )  # fmt: skip
    return read_json(folder / "training.json")["losses"], load_file(folder / "model.safetensors")


def test_a_training_that_was_stopped_ends_like_one_that_was_not(tokenizer, preferences, tmp_path, monkeypatch):
    from lasa.alignment import trainers

    whole, weights = align_to(tmp_path / "whole", build_model("llama", tokenizer, layers=2), tokenizer, preferences)
    advance, steps = trainers._Advance.on_step_end, []

    def stop_after_four(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        advance(self, *args, **kwargs)

    monkeypatch.setattr(trainers._Advance, "on_step_end", stop_after_four)
    with pytest.raises(KeyboardInterrupt):
        align_to(tmp_path / "stopped", build_model("llama", tokenizer, layers=2), tokenizer, preferences)
    assert (tmp_path / ".stopped.unfinished" / "checkpoint-4").is_dir()
    resumed, again = align_to(tmp_path / "stopped", build_model("llama", tokenizer, layers=2), tokenizer, preferences)
    assert len(steps) == 5 + 2  # it went on after step 4
    assert resumed == whole and len(whole) == 6
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not list((tmp_path / "stopped").glob("checkpoint-*"))


def test_a_training_with_other_settings_starts_anew(tokenizer, preferences, tmp_path):
    unfinished = tmp_path / ".system.unfinished" / "checkpoint-4"
    unfinished.mkdir(parents=True)
    (unfinished.parent / "training-started.json").write_text("{}")
    losses, _ = align_to(tmp_path / "system", build_model("llama", tokenizer, layers=2), tokenizer, preferences)
    assert len(losses) == 6


def test_the_perplexity_is_measured_before_and_after(tokenizer, preferences, tmp_path):
    align_to(tmp_path / "system", build_model("llama", tokenizer, layers=2), tokenizer, preferences)
    drift = read_json(tmp_path / "system" / "perplexity.json")
    assert set(drift["languages"]) == {"en", "zh"}
    assert all(found["before"] != found["after"] > 1 for found in drift["languages"].values())


def test_all_weights_of_a_bfloat16_model_are_trained_in_float32_and_stored_as_they_were(
    tokenizer, preferences, tmp_path
):
    model = build_model("llama", tokenizer, layers=2).bfloat16()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    _, after = align_to(tmp_path / "system", model, tokenizer, preferences, gradient_checkpointing=True)
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    assert any(not torch.equal(before[name], after[name]) for name in after)


@pytest.mark.parametrize("stop", [True, False])
def test_training_stops_or_warns_where_it_becomes_less_helpful_than_the_floor(tokenizer, tmp_path, stop, capsys):
    table = [Preference(user_prompt(str(n), "en", f"paint house {n}"), f"yes {n}", f"no {n}") for n in range(8)]
    shares = iter([0.95, 0.5, 0.95])
    floor = HelpfulnessFloor(lambda model: next(shares), 0.9, every=1, stop=stop)
    settings = TrainingSettings(steps=3, batch_size=4, warmup_steps=0)
    rows = token_rows(tokenizer, table, [[]] * 8, seed=0)
    model = build_model("llama", tokenizer, layers=2)
    trained = train(model, tokenizer, rows, settings, tmp_path, "test", floor=floor)
    assert len(trained.losses) == (2 if stop else 3)
    assert trained.helpfulness[:2] == [(1, 0.95), (2, 0.5)]


def test_four_bits_without_bitsandbytes_say_what_to_install(model_folder, monkeypatch):
    from lasa import models

    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install bitsandbytes"):
        load_model(str(model_folder), four_bit=True)


def test_a_signal_that_needs_an_interpreter_says_so(tokenizer, preferences, tmp_path):
    with pytest.raises(RecipeError, match="'interpreter' needs an interpreter"):
        model = build_model("llama", tokenizer, layers=2)
        align_to(tmp_path / "system", model, tokenizer, preferences, signal="interpreter")


@pytest.fixture
def launch(tmp_path, tokenizer, preferences):
    """Runs `lasa align` on two processes without a GPU, as `accelerate launch` would with these variables."""
    write_model(tmp_path / "model", tokenizer)
    write_preferences(tmp_path / "preferences.jsonl", preferences)
    write_prompts(tmp_path / "benign.jsonl", [one.prompt for one in preferences if not one.prompt.harmful])

    def run(**variables: str) -> subprocess.CompletedProcess:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lasa"),
            *("align", "--model", str(tmp_path / "model"), "--preferences", str(tmp_path / "preferences.jsonl")),
            *("--benign", str(tmp_path / "benign.jsonl"), "--set", "signal=label", "--output", str(tmp_path / "out")),
            *("--set", "steps=2", "--set", "batch_size=2", "--set", "warmup_steps=0", "--set", "learning_rate=1e-3"),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
        return subprocess.run(command, capture_output=True, text=True, env={**environment, **variables}, timeout=220)

    return run


def test_two_processes_train_one_model_in_the_wrapper_that_was_asked_for(launch, tmp_path):
    finished = launch()
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert read_json(tmp_path / "out" / "training.json")["wrapper"] == "DistributedDataParallel"
    load_model(str(tmp_path / "out"))


@pytest.mark.slow
def test_fsdp_that_would_run_as_something_else_is_refused(launch, tmp_path):
    """accelerate runs an FSDP configuration with `use_cpu` as plain DDP, without a word."""
    finished = launch(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    assert finished.returncode != 0
    assert "asks for FSDP, but the model was trained in DistributedDataParallel" in " ".join(finished.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("variable", "strategy"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]
)
def test_a_strategy_that_is_not_in_use_is_an_error(monkeypatch, variable, strategy):
    class FSDPLlama(FSDPModule):
        pass

    plain = SimpleNamespace(model_wrapped=torch.nn.Linear(1, 1))
    assert check_wrapper(plain) == "Linear"
    monkeypatch.setenv(variable, "true")
    with pytest.raises(RecipeError, match=f"asks for {strategy}, but the model was trained in Linear"):
        check_wrapper(plain)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    assert check_wrapper(SimpleNamespace(model_wrapped=object.__new__(FSDPLlama))) == "FSDPLlama"


@pytest.mark.parametrize("name", ["one-gpu", "fsdp2", "deepspeed-zero3"])
def test_accelerate_reads_the_configurations_that_ship(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ACCELERATE / f"{name}.yaml"))
    assert json.dumps(config.to_dict())
    assert config.mixed_precision == "bf16"
