"""An official checkpoint is taken over from the command line, on a tiny random model."""

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from conftest import build_model
from lasa.cli import app
from lasa.data.prompt_tables import write_prompts
from lasa.data.world import tables
from lasa.errors import ArtifactError, ModelError, RecipeError
from lasa.interpreter.probe import load_interpreter
from lasa.models.settings import ModelSettings
from lasa.run.systems import find_system


@pytest.fixture
def checkpoint(tmp_path):
    """A random probe as the authors' code saves it, as wide as the tiny model."""
    torch.manual_seed(0)
    module = nn.Module()
    module.mlp = nn.Sequential(nn.Linear(32, 6), nn.LayerNorm(6), nn.GELU(), nn.Dropout(0.1), nn.Linear(6, 1))
    torch.save({"model_state_dict": module.state_dict()}, tmp_path / "checkpoint.pt")
    (tmp_path / "config.json").write_text(json.dumps({"layer_idx": 2, "threshold": 0.7}))
    return tmp_path


def imported(checkpoint, model, *more, layer=2):
    """What the command says; its error is raised."""
    command = ["import-interpreter", checkpoint, "--model", model, "--layer", layer, "-o", checkpoint / "ours", *more]
    result = CliRunner().invoke(app, [str(part) for part in command])
    if result.exception:
        raise result.exception
    return result.stdout


def test_an_imported_checkpoint_guards_the_model_it_belongs_to(checkpoint, model_folder):
    assert "Fit it again with --prompts" in imported(checkpoint, model_folder)
    interpreter = load_interpreter(checkpoint / "ours")
    assert interpreter.config.threshold == pytest.approx(0.7) and interpreter.config.read_point.layer == 2
    guard = find_system(model=ModelSettings(path=str(model_folder)), interpreter=checkpoint / "ours").guard()
    assert 0 < guard.decide([({"role": "user", "content": "hello"},)])[0].score < 1


def test_its_threshold_is_fitted_again_on_prompts(checkpoint, model_folder):
    write_prompts(checkpoint / "dev.jsonl", tables.interpreter_prompts(("en", "zh"), 12, share="dev"))
    said = imported(checkpoint, model_folder, "--prompts", checkpoint / "dev.jsonl", "--false-refusals", 0.2)
    assert "At most 20.0%" in said
    assert load_interpreter(checkpoint / "ours").config.threshold != pytest.approx(0.7)


def test_what_does_not_fit_is_not_imported(checkpoint, model_folder, tokenizer):
    with pytest.raises(ModelError, match="Layer 9 does not exist"):
        imported(checkpoint, model_folder, layer=9)
    with pytest.raises(RecipeError, match="needs --prompts"):
        imported(checkpoint, model_folder, "--false-refusals", 0.1)
    build_model("llama", tokenizer, hidden_size=64).save_pretrained(model_folder)
    with pytest.raises(ArtifactError, match="hidden states of width 32"):
        imported(checkpoint, model_folder)
    assert not (checkpoint / "ours").exists()
