"""One model at a time, one optimiser at a time: what is alive while something else is loaded or measured."""

import gc

import pytest

from lasa import pipeline
from lasa.alignment import system as alignment
from lasa.data.prompt_tables import write_prompts
from lasa.data.world import tables
from lasa.guard import system as guard
from lasa.pipeline import run_recipe
from lasa.run import training
from lasa.run.recipe import check_recipe
from meter import LiveModels, live_optimizers
from miniature import LANGUAGES, write_model, write_recipe


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    """Figures take longer than all the rest."""
    monkeypatch.setattr(pipeline, "write_report", lambda folder: folder)


@pytest.fixture
def recipe(tmp_path, tokenizer):
    """A recipe with a sweep, an adapter, a guarded system and the model's own answers."""
    write_model(tmp_path / "model", tokenizer)
    systems = {"base": {}, "lasa": {"method": "kto", "signal": "interpreter", "guarded": True, "lora_rank": 2}}
    value = write_recipe(tmp_path, systems)
    prompts = tables.evaluation_prompts("combinations", 2, LANGUAGES, share="dev")
    write_prompts(tmp_path / "development.jsonl", prompts)
    value["alignment"] |= {"development": [str(tmp_path / "development.jsonl")], "watch_every": 1}
    value["systems"]["lasa"]["sweep"] = [{"steps": 1}, {"steps": 2, "lora_rank": 0}]
    return check_recipe(value, "test")


def test_a_stage_loads_what_it_needs_and_lets_go_of_it(recipe, tmp_path, monkeypatch):
    gc.collect()
    models = LiveModels(monkeypatch, pipeline, training, alignment, guard)
    run_recipe(recipe, tmp_path / "run")
    assert len(models.loaded) == 1 + 2 * 2 + 2  # the base's stages, two points of the sweep, two systems
    assert models.alive_before == [0] * len(models.loaded)
    assert models.alive == 0


def test_a_run_that_is_finished_loads_no_model(recipe, tmp_path, monkeypatch):
    run_recipe(recipe, tmp_path / "run")
    models = LiveModels(monkeypatch, pipeline, training, alignment, guard)
    run_recipe(recipe, tmp_path / "run")
    assert models.loaded == []


def test_what_a_training_did_is_measured_without_its_optimiser(recipe, tmp_path, monkeypatch):
    gc.collect()
    before, found = live_optimizers(), []
    measure = alignment.conversation_losses

    def counted(*args):
        found.append(live_optimizers() - before)
        return measure(*args)

    monkeypatch.setattr(alignment, "conversation_losses", counted)
    run_recipe(recipe, tmp_path / "run")
    assert found == [0] * 4  # before and after each of two trainings
