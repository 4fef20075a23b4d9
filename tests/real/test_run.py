"""The pipeline on a real model from end to end, on a GPU where there is one: `make test-real`.

What it took is printed, stage by stage; the decisions are made again on the CPU in float32.
"""

import os
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from lasa.cli import app
from lasa.files.artifacts import read_json
from lasa.files.settings import parse_yaml
from lasa.pipeline import run_recipe
from lasa.run.recipe import check_recipe

MODELS = Path(os.environ.get("LASA_MODELS", "nowhere"))
RECIPE = Path(__file__).parents[2] / "recipes" / "qwen2.5-coder-0.5b.yaml"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not MODELS.is_dir(), reason="LASA_MODELS names no folder of pretrained models"),
]


@pytest.fixture(scope="module")
def finished(shared, tmp_path_factory):
    """A run of the shipped recipe: the same stages, fewer questions and steps."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "models").symlink_to(MODELS.resolve())
    (folder / "data").symlink_to(shared.resolve())
    recipe = parse_yaml(RECIPE.read_text("utf-8"), str(RECIPE))
    recipe["layer_search"]["prompts"] = ["data/real/benign-sentences-ten-languages.jsonl?questions=60"]
    recipe["interpreter"] |= {"train": ["data/real/labelled-train.jsonl?questions=400"], "parallel": []}
    recipe["alignment"] |= {"own_questions": 30, "development": ["data/real/labelled-development.jsonl?questions=8"]}
    short = {"steps": 20, "warmup_steps": 4}
    systems = {name: recipe["systems"][name] for name in ("base", "fixed-refusal", "lasa")}
    recipe["systems"] = {name: {**one, **short} if "method" in one else one for name, one in systems.items()}
    questions = (
        "multijail:data/multijail/MultiJail.csv?questions=20 + data/real/benign-requests-test.jsonl?questions=15"
    )
    recipe["evaluation"] |= {"benchmarks": {"headline": questions}, "second_judge": None, "max_new_tokens": 48}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_recipe(check_recipe(recipe, "test"), folder / "run")
        yield folder / "run"


def test_every_stage_runs_and_says_what_it_took(finished, capsys):
    stages = read_json(finished / "stages.json")["stages"]
    table = Table("stage", "seconds", "peak GiB", "peak GiB on GPUs", title="A run of Qwen2.5-Coder-0.5B-Instruct")
    for name, cost in stages.items():
        table.add_row(name, *(str(cost.get(key, "")) for key in ("seconds", "peak_gib", "gpu_peak_gib")))
    with capsys.disabled():
        Console().print(table)
    assert {"bottleneck", "preferences", "interpreter", "align lasa", "evaluate lasa", "metrics"} <= set(stages)
    metrics = read_json(finished / "metrics.json")
    for group in ("seen", "unseen"):
        before, after = (metrics["systems"][name][group]["asr"]["value"] for name in ("base", "lasa"))
        assert after < before


@pytest.mark.parametrize("system", ["fixed-refusal", "lasa"])
def test_the_cpu_decides_in_float32_as_was_decided_where_it_ran(finished, system, capsys):
    options = ("--run", str(finished), "--system", system, "--device", "cpu", "--dtype", "float32")
    shown = CliRunner().invoke(app, ["doctor", *options])
    with capsys.disabled():
        print(f"{system}: {shown.output.splitlines()[-1]}")
    assert shown.exit_code == 0, shown.exception
    assert "Within the bound of 1.0%" in shown.output
