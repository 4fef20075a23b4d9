"""Systems of a run that are worked on in several processes."""

import subprocess
import sys

import pytest

from lasa.errors import LasaError, RecipeError
from lasa.files.artifacts import read_json
from lasa.pipeline import run_recipe
from lasa.run import beside
from lasa.run.recipe import check_recipe
from miniature import write_model, write_recipe


@pytest.fixture(scope="module")
def plain(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniature")
    write_model(folder / "model", tokenizer)
    return write_recipe(folder)


def test_two_processes_write_what_one_writes(plain, tmp_path):
    recipe = check_recipe(plain, "test")
    run_recipe(recipe, tmp_path / "one")
    run_recipe(recipe, tmp_path / "two", processes=2)
    one, two = (read_json(tmp_path / name / "metrics.json") for name in ("one", "two"))
    for cost in ("seconds", "costs"):
        assert one.pop(cost).keys() == two.pop(cost).keys()
    assert one == two
    for name in recipe.systems:
        written = [(tmp_path / run / "samples" / f"{name}.jsonl").read_text("utf-8") for run in ("one", "two")]
        assert written[0] == written[1]


def test_an_error_in_another_process_is_this_ones_error(plain, tmp_path):
    systems = dict(plain["systems"])
    systems["surface-kto"] = {**systems["surface-kto"], "lora_rank": 2, "lora_targets": ["nothing_like_it"]}
    recipe = check_recipe({**plain, "systems": systems}, "test")
    with pytest.raises(RecipeError, match="surface-kto: no adapter can be put onto"):
        run_recipe(recipe, tmp_path / "run", processes=2)
    assert "align surface-sft" in read_json(tmp_path / "run" / "stages.json")["stages"]  # this process's own


def test_another_process_that_is_killed_is_told():
    with pytest.raises(LasaError, match="failed or was killed"):
        raise beside._error("")


def test_another_process_ends_when_the_first_one_does():
    code = "from lasa.run import beside; beside.told_beside(); print('on', flush=True); import time; time.sleep(60)"
    other = subprocess.Popen(
        [sys.executable, "-c", code, "folder", "evaluate", "silent", "base"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "on\n"
    other.communicate(timeout=20)
    assert other.returncode == 1
