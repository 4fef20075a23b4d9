"""Stage 3 alone, from files: resumed, on two processes, watched."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerControl, TrainerState

from conftest import build_model
from guards import build_interpreter
from lasa.alignment.callbacks import HelpfulnessFloor, WatchHelpfulness
from lasa.alignment.consistency import Consistency, translations
from lasa.alignment.processes import check_unsharded, check_wrapper
from lasa.alignment.rows import token_rows
from lasa.alignment.settings import AlignmentSettings, SystemSettings
from lasa.alignment.system import align_system
from lasa.alignment.tables import AlignmentTables
from lasa.alignment.trainers import train
from lasa.conditioning.condition import DEFAULT_CONDITION, condition_ids
from lasa.data.preferences import Preference
from lasa.data.prompt_tables import write_prompts
from lasa.data.prompts import user_prompt
from lasa.data.world import tables
from lasa.errors import ModelError, RecipeError
from lasa.files.artifacts import model_fingerprint, read_json, write_json
from lasa.guard.guard import Guard
from lasa.interpreter.probe import load_interpreter
from lasa.interpreter.settings import CalibrationOptions
from lasa.models.generation import GenerationSettings
from lasa.models.hidden_states import read_hidden_states
from lasa.models.loading import load_model
from lasa.models.settings import ModelSettings
from lasa.models.soft_condition import SoftCondition
from lasa.run.systems import find_system
from miniature import write_model, write_preferences

ACCELERATE = Path(__file__).parents[2] / "recipes" / "accelerate"
SYSTEM = {"method": "kto", "learning_rate": 1e-3, "steps": 6, "batch_size": 4, "warmup_steps": 0, "save_steps": 2}


@pytest.fixture
def preferences():
    return tables.preferences(("en",), 6, 6, ("en", "zh"))


def align_to(folder: Path, model, tokenizer, preferences, interpreter=None, condition=None, **settings):
    system = SystemSettings(**{**SYSTEM, **settings})
    section = AlignmentSettings(preferences="-", condition=condition)
    benign = [one.prompt for one in preferences if not one.prompt.harmful]
    align_system(
        model, tokenizer, interpreter, AlignmentTables(preferences, benign=benign), system, section,
        CalibrationOptions(), folder, name="test", base="tiny", seed=0,
    )  # fmt: skip
    weights = [load_file(path) for path in folder.glob("*.safetensors")]
    return read_json(folder / "training.json")["losses"], {name: w for one in weights for name, w in one.items()}


def stop_in_step(monkeypatch, number: int) -> list[int]:
    """Stops the next training in that step, and once only; counts the steps of all."""
    from lasa.alignment import trainers

    advance, steps = trainers.AdvanceProgress.on_step_end, []

    def stop(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == number:
            raise KeyboardInterrupt
        advance(self, *args, **kwargs)

    monkeypatch.setattr(trainers.AdvanceProgress, "on_step_end", stop)
    return steps


BEHIND = {
    "lora_rank": 2, "adapter": "behind_condition", "signal": "always", "guarded": True, "refusals_from": "preferences",
}  # fmt: skip

RESUMED = {
    "kto": {"answer_weight": 0.5},
    "sft": {"method": "sft"},
    "dpo": {"method": "dpo"},
    "adapter": {"lora_rank": 2},
    "soft-adapter": {"lora_rank": 2, "signal": "soft", "guarded": True},
    "adapter-behind": BEHIND,
    "sft-adapter-behind": {**BEHIND, "method": "sft"},
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_a_training_that_was_stopped_ends_like_one_that_was_not(
    settings, tokenizer, preferences, prompts, model_folder, tmp_path, monkeypatch
):
    interpreter = build_interpreter(load_model(str(model_folder))[0], tokenizer, prompts)

    def align(name: str):
        model, _ = load_model(str(model_folder))
        return align_to(tmp_path / name, model, tokenizer, preferences, interpreter, **settings)

    whole, weights = align("whole")
    steps = stop_in_step(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        align("stopped")
    assert (tmp_path / ".stopped.unfinished" / "checkpoint-4").is_dir()
    resumed, again = align("stopped")
    assert len(steps) == 5 + 2  # it went on after step 4
    assert resumed == whole and len(whole) == 6
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not list((tmp_path / "stopped").glob("checkpoint-*"))


def test_a_checkpoint_that_was_not_written_to_its_end_is_not_gone_on_from(
    tokenizer, preferences, tmp_path, monkeypatch
):
    whole, _ = align_to(tmp_path / "whole", build_model("llama", tokenizer, layers=2), tokenizer, preferences)
    stop_in_step(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        align_to(tmp_path / "stopped", build_model("llama", tokenizer, layers=2), tokenizer, preferences)
    half = tmp_path / ".stopped.unfinished" / "checkpoint-5"
    half.mkdir()
    shutil.copy(half.with_name("checkpoint-4") / "model.safetensors", half)
    resumed, _ = align_to(tmp_path / "stopped", build_model("llama", tokenizer, layers=2), tokenizer, preferences)
    assert resumed == whole


def test_another_condition_starts_a_soft_one_anew(tokenizer, preferences, prompts, tmp_path, monkeypatch):
    def align(condition: str):
        model = build_model("llama", tokenizer, layers=2)
        interpreter = build_interpreter(model, tokenizer, prompts)
        settings = {"signal": "soft", "guarded": True}
        return align_to(tmp_path / "system", model, tokenizer, preferences, interpreter, condition, **settings)

    steps = stop_in_step(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        align("Stop here.")
    align("Say no.")
    assert len(steps) == 5 + 6


@pytest.mark.parametrize("signal", ["interpreter", "soft"])
def test_what_a_guard_must_know_of_a_training_lies_beside_the_model(signal, tokenizer, preferences, prompts, tmp_path):
    model = build_model("llama", tokenizer, layers=2)
    interpreter, base = build_interpreter(model, tokenizer, prompts), model_fingerprint(model)
    settings = {"signal": signal, "guarded": True, "steps": 1}
    align_to(tmp_path / "system", model, tokenizer, preferences, interpreter, "Stop here.", **settings)
    facts = read_json(tmp_path / "system" / "lasa.json")
    assert (facts["condition"], facts["base_fingerprint"]) == ("Stop here.", base)


def test_rows_are_conditioned_where_the_guard_conditions(tokenizer, preferences, prompts, tmp_path):
    """Also in the controversial band."""
    model = build_model("llama", tokenizer, layers=2)
    asked = [one.prompt for one in preferences]
    interpreter = build_interpreter(model, tokenizer, asked, flagged=0.2)
    scores = sorted(interpreter.probability(read_hidden_states(model, tokenizer, asked, [2])[:, 0]).tolist())
    object.__setattr__(
        interpreter.config, "controversial", (scores[len(scores) // 2 - 1] + scores[len(scores) // 2]) / 2
    )
    decided = Guard(model, tokenizer, interpreter).decide([one.messages for one in asked])
    conditioned = [decision.action == "condition" for decision in decided]
    assert sum(conditioned) > sum(decision.flagged for decision in decided) > 0
    settings = {"signal": "interpreter", "guarded": True, "steps": 1}
    align_to(tmp_path / "system", model, tokenizer, preferences, interpreter, **settings)
    facts = read_json(tmp_path / "system" / "lasa.json")
    assert (facts["conditioned"], facts["rows"]) == (2 * sum(conditioned), 2 * len(asked))


def test_an_interpreter_that_is_fitted_again_keeps_thresholds_of_languages_without_safety_data(
    tokenizer, preferences, prompts, tmp_path
):
    model = build_model("llama", tokenizer, layers=2)
    benign = [user_prompt(f"more {n}", "it", f"come posso {n}") for n in range(30)]
    system, section = SystemSettings(**{**SYSTEM, "steps": 1}), AlignmentSettings(preferences="-", refit=True)
    align_system(
        model, tokenizer, build_interpreter(model, tokenizer, prompts),
        AlignmentTables(preferences, probes=prompts, calibration=benign), system, section,
        CalibrationOptions(false_refusals=0.2, per_language=True), tmp_path / "system",
        name="test", base="tiny", seed=0,
    )  # fmt: skip
    assert set(load_interpreter(tmp_path / "system" / "interpreter").config.language_thresholds) == {"it"}


def test_a_training_with_other_settings_starts_anew(tokenizer, preferences, tmp_path):
    unfinished = tmp_path / ".system.unfinished" / "checkpoint-4"
    unfinished.mkdir(parents=True)
    (unfinished.parent / "training-started.json").write_text("{}")
    losses, _ = align_to(tmp_path / "system", build_model("llama", tokenizer, layers=2), tokenizer, preferences)
    assert len(losses) == 6


def test_a_stopped_training_goes_on_with_other_checkpoints_and_from_an_older_versions_settings(
    tokenizer, preferences, tmp_path, monkeypatch
):
    steps = stop_in_step(monkeypatch, 5)
    base = build_model("llama", tokenizer, layers=2)
    with pytest.raises(KeyboardInterrupt):
        align_to(tmp_path / "system", copy.deepcopy(base), tokenizer, preferences)
    started = tmp_path / ".system.unfinished" / "training-started.json"
    settings = read_json(started)["settings"]
    older = {name: value for name, value in settings.items() if name != "optimizer"}
    write_json(started, {**read_json(started), "settings": {**older, "gradient_checkpointing": False}})
    align_to(tmp_path / "system", copy.deepcopy(base), tokenizer, preferences, save_steps=3)
    assert len(steps) == 5 + 2  # from the checkpoint after step 4


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


@pytest.mark.parametrize("method", ["sft", "kto", "dpo"])
def test_an_adapter_behind_the_condition_learns_and_leaves_base_interpreter_and_plain_answers_alone(
    method, tokenizer, preferences, prompts, model_folder, tmp_path
):
    base, _ = load_model(str(model_folder))
    model, _ = load_model(str(model_folder))
    interpreter = build_interpreter(model, tokenizer, prompts, base_fingerprint=model_fingerprint(model))
    strong = {"method": method, "learning_rate": 2e-2, "steps": 12}
    system, section = SystemSettings(**{**SYSTEM, **BEHIND, **strong}), AlignmentSettings(preferences="-")
    benign = [one.prompt for one in preferences if not one.prompt.harmful]
    align_system(
        model, tokenizer, interpreter, AlignmentTables(preferences, prompts, benign=benign), system, section,
        CalibrationOptions(), tmp_path / "system", name="test", base="tiny", seed=0,
    )  # fmt: skip
    losses = read_json(tmp_path / "system" / "training.json")["losses"]
    assert sum(losses[-3:]) < sum(losses[:3])
    languages = read_json(tmp_path / "system" / "perplexity.json")["languages"]
    assert all(found["before"] == found["after"] for found in languages.values())
    assert read_json(tmp_path / "system" / "drift.json")["largest_shift"] == 0
    system = find_system(
        model=ModelSettings(path=str(tmp_path / "system")), interpreter=tmp_path / "system" / "interpreter"
    )
    guard, before = system.guard(), Guard(base, tokenizer, interpreter)
    asked = [prompt.messages for prompt in prompts]
    answers = [one.generate(asked, GenerationSettings(max_new_tokens=8)) for one in (before, guard)]
    for one, other in zip(*answers, strict=True):
        assert one.decision == other.decision
        assert one.decision.action == "condition" or one.answer == other.answer
    state = guard.model.get_base_model().state_dict()
    kept = {name.replace(".base_layer", ""): weight for name, weight in state.items() if "lora" not in name}
    assert all(torch.equal(kept[name], weight) for name, weight in base.state_dict().items())


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning")  # TRL 1.16 uses transformers' old name
def test_an_adapter_behind_the_condition_is_trained_where_the_guard_lets_it_act(tokenizer, tmp_path):
    """A user's text that holds the condition moves nothing, and blocks that are computed twice see the same."""
    asked = [user_prompt(str(n), "en", f"paint {n}. {DEFAULT_CONDITION} {n}") for n in range(8)]
    table = [Preference(prompt, f"yes {n}", f"no {n}") for n, prompt in enumerate(asked)]
    condition = condition_ids(tokenizer, DEFAULT_CONDITION)
    rows = token_rows(tokenizer, table, [condition] * 8, seed=0)
    found = []
    for checkpointing in (False, True):
        settings = SystemSettings(
            method="kto", steps=3, batch_size=4, warmup_steps=0, learning_rate=1e-2,
            gradient_checkpointing=checkpointing, **BEHIND,
        )  # fmt: skip
        model = build_model("llama", tokenizer, layers=2)
        trained = train(model, tokenizer, rows, settings, tmp_path, "test", condition=condition)
        weights = {name: p for name, p in trained.model.named_parameters() if "lora" in name}
        assert all(bool(p.abs().sum() > 0) for p in weights.values())
        found.append((trained.losses, torch.cat([p.flatten() for p in weights.values()])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


def test_a_guard_may_watch_an_adapter_while_it_is_trained(tokenizer, preferences, prompts, tmp_path):
    base = build_model("llama", tokenizer, layers=2)
    base.generation_config.eos_token_id = tokenizer.eos_token_id  # transformers' trainer sets it so
    interpreter = build_interpreter(base, tokenizer, prompts)
    asked, answers = [prompt.messages for prompt in prompts], []

    def measure(model):
        guard = Guard(model, tokenizer, interpreter, aligned=True)
        answers.append(guard.generate(asked, GenerationSettings(max_new_tokens=4)))
        return 1.0

    condition = condition_ids(tokenizer)
    rows = token_rows(tokenizer, preferences, [condition] * len(preferences), seed=0)
    settings = SystemSettings(method="sft", steps=2, batch_size=4, warmup_steps=0, learning_rate=1e-1, **BEHIND)
    floor = HelpfulnessFloor(measure, 0.9, every=1, stop=True)
    train(copy.deepcopy(base), tokenizer, rows, settings, tmp_path, "test", floor=floor, condition=condition)
    expected = Guard(base, tokenizer, interpreter).generate(asked, GenerationSettings(max_new_tokens=4))
    for found in answers:
        plain = [one.decision.action == "off" for one in found]
        assert any(plain) and not all(plain)
        assert all(a == b for a, b, same in zip(found, expected, plain, strict=True) if same)


def test_rows_without_a_condition_are_left_to_the_base(tokenizer, preferences, tmp_path):
    rows = token_rows(tokenizer, preferences, [[]] * len(preferences), seed=0)
    settings = SystemSettings(method="sft", steps=1, batch_size=4, **BEHIND)
    with pytest.raises(RecipeError, match="acts behind the condition, and no row has one"):
        train(build_model("llama", tokenizer, layers=2), tokenizer, rows, settings, tmp_path, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 0}, "set lora_rank"),
        ({"signal": "none"}, "no row has a condition"),
        ({"signal": "soft"}, "no row has a condition"),
        ({"guarded": False}, "set guarded"),
    ],
)
def test_an_adapter_that_could_never_act_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SystemSettings(method="sft", **{**BEHIND, **changes})


@pytest.mark.parametrize("stop", [True, False])
def test_training_stops_or_warns_where_it_becomes_less_helpful_than_the_floor(tokenizer, tmp_path, stop, capsys):
    table = [Preference(user_prompt(str(n), "en", f"paint house {n}"), f"yes {n}", f"no {n}") for n in range(8)]
    shares = iter([0.95, 0.5, 0.95])
    floor = HelpfulnessFloor(lambda model: next(shares), 0.9, every=1, stop=stop)
    settings = SystemSettings(method="kto", steps=3, batch_size=4, warmup_steps=0)
    rows = token_rows(tokenizer, table, [[]] * 8, seed=0)
    model = build_model("llama", tokenizer, layers=2)
    trained = train(model, tokenizer, rows, settings, tmp_path, "test", floor=floor)
    assert len(trained.losses) == (2 if stop else 3)
    assert trained.helpfulness[:2] == [(1, 0.95), (2, 0.5)]


@pytest.mark.parametrize("over", [True, False])
def test_a_warning_about_helpfulness_neither_prolongs_nor_ends_a_training(over):
    watch = WatchHelpfulness("lasa", HelpfulnessFloor(lambda model: 0.5, 0.9, every=1, stop=False))
    control = TrainerControl(should_training_stop=over)  # another callback has said so already
    watch.on_step_end(None, TrainerState(global_step=1), control, model=torch.nn.Linear(1, 1))
    assert control.should_training_stop is over and watch.measured == [(1, 0.5)]


def test_four_bits_without_bitsandbytes_say_what_to_install(model_folder, monkeypatch):
    from lasa.models import loading as models

    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install bitsandbytes"):
        load_model(str(model_folder), four_bit=True)


def test_a_signal_that_needs_an_interpreter_says_so(tokenizer, preferences, tmp_path):
    with pytest.raises(RecipeError, match="'interpreter' needs an interpreter"):
        model = build_model("llama", tokenizer, layers=2)
        align_to(tmp_path / "system", model, tokenizer, preferences, signal="interpreter")


@pytest.fixture(scope="module")
def launch(tmp_path_factory, tokenizer):
    """Runs `lasa align` on two processes without a GPU, as `accelerate launch` would with these variables."""
    folder = tmp_path_factory.mktemp("launch")
    preferences = tables.preferences(("en",), 6, 6, ("en", "zh"))
    write_model(folder / "model", tokenizer)
    write_preferences(folder / "preferences.jsonl", preferences)
    write_prompts(folder / "benign.jsonl", [one.prompt for one in preferences if not one.prompt.harmful])

    def run(
        name: str,
        program: Sequence[str] = (str(Path(__file__).parents[1] / "parting.py"),),
        settings: Sequence[str] = (),
        before: dict[str, Any] | None = None,
        **variables: str,
    ) -> tuple[subprocess.CompletedProcess, Path]:
        if before is not None:
            (folder / name).mkdir()
            write_json(folder / name / "training.json", before)
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *program),
            *("align", "--model", str(folder / "model"), "--preferences", str(folder / "preferences.jsonl")),
            *("--benign", str(folder / "benign.jsonl"), "--set", "signal=label", "--output", str(folder / name)),
            *("--set", "steps=4", "--set", "batch_size=2", "--set", "warmup_steps=0", "--set", "learning_rate=1e-3"),
            *("--set", "answer_weight=0.5"),  # some batches have no desirable answer
            *(part for setting in settings for part in ("--set", setting)),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
        environment |= variables
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=220), folder / name

    return run


@pytest.fixture(scope="module")
def replicated(launch) -> Path:
    """What two processes with the whole model each have trained."""
    finished, folder = launch("replicated", before={"wrapper": "OfAnotherTraining", "losses": [0.0]})
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert re.findall(r"Trained in (\w+)", finished.stdout) == ["DistributedDataParallel"]  # said by one of them
    return folder


def test_two_processes_train_one_model_in_the_wrapper_that_was_asked_for(replicated):
    assert read_json(replicated / "training.json")["wrapper"] == "DistributedDataParallel"
    load_model(str(replicated))


SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}
ON_CPU = (str(Path(__file__).parents[1] / "fsdp_on_cpu.py"),)


@pytest.mark.slow
def test_an_adapter_on_a_model_that_is_sharded_learns_the_same(launch):
    settings = ["lora_rank=2", "signal=always"]
    runs = [launch("adapter", settings=settings), launch("adapter-sharded", ON_CPU, settings, **SHARDED)]
    for finished, folder in runs:
        assert finished.returncode == 0, finished.stderr[-3000:]
        assert isinstance(load_model(str(folder))[0], PeftModel)
    losses = [read_json(folder / "training.json")["losses"] for _, folder in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    found = [read_json(folder / "perplexity.json")["all"] for _, folder in runs]
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def check_learned_alike(spread: Path, whole: Path) -> None:
    """A model that was spread over processes has the weights, losses and perplexity of one that was not."""
    load_model(str(spread))
    weights, expected, base = (
        torch.cat([weight.flatten() for _, weight in sorted(load_file(one / "model.safetensors").items())])
        for one in (spread, whole, spread.with_name("model"))
    )
    assert (weights - expected).norm() < 0.01 * (expected - base).norm()
    losses = [read_json(one / "training.json")["losses"] for one in (spread, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    found = [read_json(one / "perplexity.json")["all"] for one in (spread, whole)]
    assert found[0] == pytest.approx(found[1], rel=1e-3)  # each process measured its share


def test_a_model_that_fsdp_shards_over_two_processes_learns_the_same(launch, replicated):
    finished, folder = launch("sharded", ON_CPU, **SHARDED)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert read_json(folder / "training.json")["wrapper"] == "FSDPLlamaForCausalLM"
    check_learned_alike(folder, replicated)


ZERO = {
    "ACCELERATE_USE_CPU": "false",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    "ACCELERATE_GRADIENT_CLIPPING": "1.0",
    "ACCELERATE_MIXED_PRECISION": "no",
    "DS_ACCELERATOR": "cpu",
}


@pytest.mark.slow
def test_a_model_that_zero_spreads_over_two_processes_learns_the_same(launch, replicated):
    pytest.importorskip("deepspeed", reason="deepspeed is built from source: pip install deepspeed")
    finished, folder = launch("zero", (str(Path(__file__).parents[1] / "zero_on_cpu.py"),), **ZERO)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert read_json(folder / "training.json")["wrapper"] == "DeepSpeedEngine"
    check_learned_alike(folder, replicated)


@pytest.mark.slow
def test_fsdp_that_would_run_as_something_else_is_refused(launch):
    """accelerate runs an FSDP configuration with `use_cpu` as plain DDP, without a word."""
    finished, folder = launch("refused", ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    assert finished.returncode != 0
    assert "asks for FSDP, but the model was trained in DistributedDataParallel" in " ".join(finished.stderr.split())
    assert not folder.exists()


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


@pytest.mark.parametrize("what", ["the signal 'soft'", "the consistency term"])
def test_what_cannot_be_sharded_is_refused(what, monkeypatch, tokenizer, prompts):
    soft = (
        SoftCondition.from_tokens(build_model("llama", tokenizer, layers=2), tokenizer, condition_ids(tokenizer))
        if "soft" in what
        else None
    )
    consistency = None if soft else Consistency(1.0, 2, translations(tokenizer, prompts))
    check_unsharded(soft, consistency)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_unsharded(None, None)
    with pytest.raises(RecipeError, match=f"asks for FSDP, with which {what} cannot be trained"):
        check_unsharded(soft, consistency)


@pytest.mark.parametrize("name", ["one-gpu", "fsdp2", "deepspeed-zero3"])
def test_accelerate_reads_the_configurations_that_ship(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ACCELERATE / f"{name}.yaml"))
    assert json.dumps(config.to_dict())
    assert config.mixed_precision == "bf16"
