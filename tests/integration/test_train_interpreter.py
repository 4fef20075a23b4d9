"""Stage 2 and its drift from the command line, on tiny random models."""

import json

import pytest
import torch
from typer.testing import CliRunner

from conftest import build_model
from lasa.cli import app
from lasa.data.prompt_tables import write_prompts
from lasa.data.world import tables
from lasa.errors import ArtifactError, DataError, RecipeError
from lasa.files.artifacts import model_fingerprint, read_json, write_json
from lasa.interpreter.probe import load_interpreter
from lasa.models.loading import load_model


@pytest.fixture
def files(tmp_path, model_folder):
    """A saved model, its bottleneck and small tables."""
    for share, queries in (("train", 24), ("dev", 12)):
        write_prompts(tmp_path / f"{share}.jsonl", tables.interpreter_prompts(("en", "zh"), queries, share=share))
    write_prompts(tmp_path / "test.jsonl", tables.evaluation_prompts("combinations", 6, ("en", "zh", "sw")))
    network, _ = load_model(str(model_folder))
    bottleneck = {
        "layer": 2,
        "layers": [],
        "position": "last",
        "provenance": {"fingerprint": model_fingerprint(network)},
    }
    write_json(tmp_path / "bottleneck.json", bottleneck)
    return tmp_path


def lasa(*arguments, fails=None):
    """Run a command; give its standard output."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if fails is None:
        assert result.exception is None, result.exception
        return result.stdout
    assert isinstance(result.exception, fails), result.exception
    return str(result.exception)


def train_interpreter(files, *more, **options):
    return lasa(
        "train-interpreter", "--model", files / "tiny-llama", "--bottleneck", files / "bottleneck.json",
        "--train", files / "train.jsonl", "--development", files / "dev.jsonl", "--test", files / "test.jsonl",
        "--kind", "linear", "--epochs", 2, "--seeds", 1, "--output", files / "out", *more, **options,
    )  # fmt: skip


def test_an_interpreter_is_trained_from_files(files):
    printed = train_interpreter(files, "--all-layers", "--false-refusals", 0.2)
    interpreter = load_interpreter(files / "out" / "interpreter")
    assert interpreter.config.read_point.layer == 2
    assert "Balanced accuracy" in printed and "layer 4" in printed and "At most 20.0%" in printed
    results = read_json(files / "out" / "interpreter.json")
    assert [entry["layer"] for entry in results["generalisation"]["layers"]] == [0, 1, 2, 3, 4]
    assert "sw" in results["benchmarks"]["test"]["languages"]


def test_results_for_machines_are_the_stored_ones(files):
    assert json.loads(train_interpreter(files, "--json")) == read_json(files / "out" / "interpreter.json")


def test_what_is_wrong_is_said_before_anything_is_read(files):
    assert "kind" in train_interpreter(files, "--kind", "forest", fails=RecipeError)
    assert "perturbed_copies" in train_interpreter(files, "--perturbed-copies", "rot13", fails=RecipeError)
    assert "either --bottleneck" in train_interpreter(files, "--layer", 2, fails=RecipeError)
    leaky = train_interpreter(files, "--test", files / "train.jsonl", fails=DataError)
    assert "also asked in the evaluation" in leaky
    assert not (files / "out" / "interpreter").exists()


@pytest.fixture
def aligned(files, llama, tokenizer):
    """The same model, moved."""
    model = build_model("llama", tokenizer)
    model.load_state_dict(llama.state_dict())
    with torch.no_grad():
        for parameter in model.get_decoder().layers[:2].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.3)
    model.save_pretrained(files / "aligned")
    tokenizer.save_pretrained(files / "aligned")
    return files / "aligned"


def test_the_doctor_measures_drift_warns_and_fits_again(files, aligned):
    train_interpreter(files)
    known = ("doctor", "--interpreter", files / "out" / "interpreter", "--base", files / "tiny-llama",
             "--prompts", files / "dev.jsonl")  # fmt: skip
    assert "Within the bound" in lasa(*known, "--model", files / "tiny-llama")
    printed = lasa(*known, "--model", aligned, "--drift-bound", 0.0, "--refit", files / "again")
    assert "Warning" in printed and "decisions changed" in printed
    before, after = (load_interpreter(files / name) for name in ("out/interpreter", "again"))
    assert before.config.temperature != after.config.temperature
    assert torch.equal(before.out.weight, after.out.weight)


def test_the_doctor_fits_languages_and_the_band_again_or_says_that_they_are_gone(files, aligned):
    write_prompts(files / "dev.jsonl", tables.interpreter_prompts(("en", "zh"), 40, share="dev"))
    train_interpreter(files, "--false-refusals", 0.2, "--per-language", "--controversial-misses", 0.05)
    known = ("doctor", "--interpreter", files / "out" / "interpreter", "--base", files / "tiny-llama",
             "--prompts", files / "dev.jsonl", "--model", aligned, "--refit", files / "again")  # fmt: skip
    had = load_interpreter(files / "out" / "interpreter").config
    assert set(had.language_thresholds) == {"en", "zh"} and had.controversial is not None
    printed = lasa(*known)
    assert "no longer there: the threshold of en, the threshold of zh, the controversial band." in printed
    assert load_interpreter(files / "again").config.language_thresholds == {}
    printed = lasa(*known, "--false-refusals", 0.2, "--controversial-misses", 0.05)
    assert "no longer there" not in printed
    assert set(load_interpreter(files / "again").config.language_thresholds) == {"en", "zh"}


def test_the_doctor_refuses_an_aligned_model_as_the_base(files, aligned):
    train_interpreter(files)
    known = ("doctor", "--interpreter", files / "out" / "interpreter")
    assert "another base model" in lasa(*known, "--model", aligned, fails=ArtifactError)
    both = (*known, "--base", aligned, "--model", aligned, "--prompts", files / "dev.jsonl")
    assert "another base model" in lasa(*both, fails=ArtifactError)
    assert "together" in lasa(*known, "--base", aligned, fails=RecipeError)
    assert "--refit needs" in lasa(*known, "--refit", files / "again", fails=RecipeError)
