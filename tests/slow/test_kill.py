"""`lasa run` is killed at 20 random moments, in every stage, and ends with the metrics of a run that was left alone."""

import json
import random
import signal
import time

import pytest

from lasa.data.prompt_tables import write_prompts
from lasa.data.world import tables
from lasa.files.artifacts import read_json
from lasa.run.recipe import check_recipe, recipe_text
from miniature import LANGUAGES, write_model, write_recipe
from processes import start_run

pytestmark = pytest.mark.slow

MOMENTS = 20
TRAINING = {"learning_rate": 1e-3, "batch_size": 4, "warmup_steps": 1}
SYSTEMS = {
    "base": {},
    "surface-sft": {"method": "sft"},
    "lasa": {"method": "kto", "signal": "interpreter", "guarded": True},
}


@pytest.fixture(scope="module")
def miniature(tokenizer, tmp_path_factory):
    """A recipe file and, beside it in `whole`, its run without any interruption."""
    folder = tmp_path_factory.mktemp("miniature")
    write_model(folder / "model", tokenizer)
    recipe = write_recipe(folder, SYSTEMS, batch_size=8)
    write_prompts(folder / "development.jsonl", tables.evaluation_prompts("combinations", 3, LANGUAGES, share="dev"))
    recipe["alignment"]["development"] = [str(folder / "development.jsonl")]
    recipe["systems"]["lasa"]["sweep"] = [{"steps": 1}, {"steps": 2}]
    (folder / "recipe.yaml").write_text(recipe_text(check_recipe(recipe, "test")))
    finish(folder, folder / "whole")
    return folder


def finish(miniature, run):
    process = start_run(miniature / "recipe.yaml", run)
    process.join()
    assert process.exitcode == 0, run.with_suffix(".log").read_text()


def seconds(run):
    """Seconds of each finished stage, in order."""
    record = run / "stages.json"
    stages = json.loads(record.read_text())["stages"] if record.exists() else {}
    return {name: stage["seconds"] for name, stage in stages.items()}


def outcome(run):
    """Everything that was measured, and every answer."""
    found = read_json(run / "metrics.json")
    metrics = {name: value for name, value in found.items() if name not in ("seconds", "costs")}
    return metrics, {path.name: path.read_bytes() for path in (run / "samples").iterdir()}


def kill(miniature, run, after, delay):
    """Start the run, kill it so many seconds after these stages are finished, and tell the stage it was in.

    Returns:
        The stage, or None where the run was faster than the delay.
    """
    process = start_run(miniature / "recipe.yaml", run)
    while process.is_alive() and not set(after) <= seconds(run).keys():
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.join()
    if process.exitcode == 0:
        return None
    assert process.exitcode == -signal.SIGKILL, run.with_suffix(".log").read_text()
    return next((name for name in seconds(miniature / "whole") if name not in seconds(run)), None)


def test_a_run_killed_at_any_moment_ends_with_the_same_metrics(miniature, tmp_path):
    whole, draw = seconds(miniature / "whole"), random.Random(0)
    stages = list(whole)
    assert len(stages) == 11
    killed = []
    for moment in range(MOMENTS):
        stage = stages[moment] if moment < len(stages) else draw.choices(stages, list(whole.values()))[0]
        run, delay = tmp_path / str(moment), draw.random() * whole[stage]
        found = kill(miniature, run, stages[: stages.index(stage)], delay)
        if found != stage:  # too late for a short stage: once more, at its beginning
            run = tmp_path / f"{moment}-again"
            found = kill(miniature, run, stages[: stages.index(stage)], 0)
        killed.append(found)
        finish(miniature, run)
        assert outcome(run) == outcome(miniature / "whole"), f"killed in {found}"
    assert set(killed) == set(stages)
