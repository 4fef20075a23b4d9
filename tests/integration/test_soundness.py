"""What is not finite ends a training, with its step and its rows, and never becomes a system."""

import pytest
import torch
from trl import SFTTrainer

from conftest import build_model
from lasa.alignment import trainers
from lasa.alignment.arguments import trainer_arguments
from lasa.alignment.objectives import TokenizedKTOTrainer
from lasa.alignment.settings import AlignmentSettings, SystemSettings
from lasa.alignment.system import align_system
from lasa.alignment.tables import AlignmentTables
from lasa.data.world import tables
from lasa.errors import TrainingError
from lasa.interpreter.settings import CalibrationOptions
from lasa.models.loading import load_model

METHODS = ["sft", "kto", "dpo"]
ADAPTER = {
    "lora_rank": 2, "adapter": "behind_condition", "signal": "always", "guarded": True, "refusals_from": "preferences",
}  # fmt: skip


@pytest.fixture
def preferences():
    return tables.preferences(("en",), 6, 6, ("en", "zh"))


def align(folder, tokenizer, preferences, model=None, **settings):
    chosen = {"method": "kto", "learning_rate": 1e-3, "steps": 4, "batch_size": 4, "warmup_steps": 0, "save_steps": 1}
    align_system(
        model or build_model("llama", tokenizer, layers=2), tokenizer, None, AlignmentTables(preferences),
        SystemSettings(**{**chosen, **settings}), AlignmentSettings(preferences="-"), CalibrationOptions(), folder,
        name="test", base="tiny", seed=0,
    )  # fmt: skip


def at_step(number, spoil, monkeypatch, when="on_step_begin"):
    """Calls `spoil(model)` at that step."""
    known = trainers.AdvanceProgress

    def call(self, args, state, control, model=None, **kwargs):
        if state.global_step == number - (when == "on_step_begin"):
            spoil(model)

    monkeypatch.setattr(trainers, "AdvanceProgress", type("Spoiling", (known,), {when: call}))


def check_ended(folder, error, what, step, preferences):
    assert f"{what} is not finite in step {step}, on the rows " in str(error.value)
    named = str(error.value).partition("on the rows ")[2].partition(". Nothing")[0]
    known = {f"{one.prompt.query_id} ({one.prompt.language})" for one in preferences}
    assert set(named.split(", ")) <= known and 1 <= len(named.split(", ")) <= 4
    assert not folder.exists()
    kept = folder.with_name(f".{folder.name}.unfinished")
    assert [path.name for path in kept.glob("checkpoint-*")] == [f"checkpoint-{step - 1}"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("settings", [{}, ADAPTER], ids=["all", "behind"])
def test_a_loss_that_is_not_finite(method, settings, tokenizer, preferences, model_folder, tmp_path, monkeypatch):
    """The trainer's own filter would log it as 0 and go on."""

    def spoil(model):
        model.get_output_embeddings().weight.data[:] = torch.nan

    at_step(3, spoil, monkeypatch)
    with pytest.raises(TrainingError) as error:
        align(tmp_path / "system", tokenizer, preferences, load_model(str(model_folder))[0], method=method, **settings)
    check_ended(tmp_path / "system", error, "a log-probability" if method == "kto" else "the loss", 3, preferences)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_that_are_not_finite_move_no_weight(method, tokenizer, preferences, tmp_path, monkeypatch):
    def spoil(model):
        weight = model.get_decoder().layers[0].mlp.up_proj.weight
        weight.register_hook(lambda gradient: gradient * torch.nan)

    at_step(3, spoil, monkeypatch)
    with pytest.raises(TrainingError) as error:
        align(tmp_path / "system", tokenizer, preferences, method=method)
    check_ended(tmp_path / "system", error, "the norm of the gradients", 3, preferences)


def test_a_weight_that_is_not_finite_is_in_no_checkpoint(tokenizer, preferences, tmp_path, monkeypatch):
    def spoil(model):
        model.get_decoder().layers[0].mlp.up_proj.weight.data[0, 0] = torch.inf

    at_step(2, spoil, monkeypatch, when="on_optimizer_step")
    with pytest.raises(TrainingError) as error:
        align(tmp_path / "system", tokenizer, preferences)
    check_ended(tmp_path / "system", error, "a weight", 3, preferences)


def test_kto_does_not_average_a_row_away(tokenizer, preferences, tmp_path, monkeypatch):
    """TRL takes the mean of the losses that are numbers."""
    plain = TokenizedKTOTrainer._compute_loss

    def one_row(self, model, inputs, return_outputs):
        def spoiled(*args, **kwargs):
            output = model(*args, **kwargs)
            if torch.is_grad_enabled() and self.state.global_step == 2:
                output.log_probs = output.log_probs.index_fill(0, torch.tensor([1]), torch.nan)
            return output

        return plain(self, spoiled, inputs, return_outputs)

    monkeypatch.setattr(TokenizedKTOTrainer, "_compute_loss", one_row)
    with pytest.raises(TrainingError) as error:
        align(tmp_path / "system", tokenizer, preferences)
    check_ended(tmp_path / "system", error, "a log-probability", 3, preferences)


def test_the_trainers_filter_is_off(tokenizer, tmp_path):
    settings = SystemSettings(method="sft")
    model = build_model("llama", tokenizer, layers=2)
    assert trainer_arguments(model, settings, tmp_path, 0)["logging_nan_inf_filter"] is False


def test_a_model_that_predicts_no_numbers_is_no_system(tokenizer, preferences, tmp_path, monkeypatch):
    trained = trainers.train

    def spoiled(*args, **kwargs):
        result = trained(*args, **kwargs)
        result.model.get_output_embeddings().weight.data[5] = torch.nan
        return result

    monkeypatch.setattr("lasa.alignment.system.train", spoiled)
    with pytest.raises(TrainingError, match="predicts nothing that is a number"):
        align(tmp_path / "system", tokenizer, preferences)
    assert not (tmp_path / "system").exists()


@pytest.mark.parametrize("settings", [{}, ADAPTER], ids=["all", "behind"])
def test_a_model_that_repeats_one_token_is_named(settings, tokenizer, preferences, model_folder, tmp_path, monkeypatch):
    trained, told = trainers.train, []

    def broken(*args, **kwargs):
        result = trained(*args, **kwargs)
        with torch.no_grad():
            result.model.get_decoder().norm.weight.zero_()  # all logits are equal: token 0, again and again
        return result

    monkeypatch.setattr("lasa.alignment.system.train", broken)
    monkeypatch.setattr("lasa.alignment.soundness.say", told.append)
    align(tmp_path / "system", tokenizer, preferences, load_model(str(model_folder))[0], **settings)
    assert len(told) == 1 and ("with one token" in told[0] or "with nothing" in told[0])


def test_sft_of_trl_still_takes_labels_as_they_are():
    """Where an activated adapter begins is read from them."""
    assert "labels" in SFTTrainer.compute_loss.__code__.co_consts
