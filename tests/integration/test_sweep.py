"""A system that is trained at several points, of which the best on development data is kept."""

import pytest

from lasa.data.prompt_tables import write_prompts
from lasa.data.world import tables
from lasa.errors import DataError, RecipeError
from lasa.files.artifacts import read_json
from lasa.pipeline import run_recipe
from lasa.run.recipe import check_recipe
from lasa.run.sweep import Reached, choose
from miniature import LANGUAGES, write_model, write_recipe

SWEPT = {"method": "sft", "learning_rate": 1e-3, "steps": 1, "batch_size": 4, "warmup_steps": 0}
POINTS = [{"learning_rate": 1e-6}, {"learning_rate": 1e-3, "steps": 2}]


@pytest.fixture
def recipe(tmp_path, tokenizer):
    """A recipe with one system that is swept and one that is not."""
    write_model(tmp_path / "model", tokenizer)
    value = write_recipe(tmp_path, {"plain": {"method": "sft"}, "swept": {}})
    development = tables.evaluation_prompts("combinations", 3, LANGUAGES, share="dev")
    write_prompts(tmp_path / "development.jsonl", development)
    value["alignment"]["development"] = [str(tmp_path / "development.jsonl")]
    value["systems"]["swept"] = {**SWEPT, "sweep": POINTS}
    return value


def test_every_point_is_kept_in_the_metrics_and_the_chosen_model_is_the_system(recipe, tmp_path):
    run = tmp_path / "run"
    run_recipe(check_recipe(recipe, "test"), run)
    metrics = read_json(run / "metrics.json")["systems"]
    sweep, choice = metrics["swept"]["sweep"], metrics["swept"]["sweep_choice"]
    assert "sweep" not in metrics["plain"]
    assert [point["settings"] for point in sweep] == POINTS
    assert all(set(point["development"]["languages"]) == set(LANGUAGES) for point in sweep)
    assert choice["reaches_floor"] is False  # a random model helps nobody
    assert "none of which reaches" in choice["verdict"]
    assert [point["chosen"] for point in sweep].index(True) == choice["point"]
    trained = read_json(run / "systems" / "swept" / "lasa.json")["settings"]
    assert trained["learning_rate"] == POINTS[choice["point"]]["learning_rate"]
    assert not list((run / "sweep").rglob("*.safetensors"))
    assert not (run / "sweep" / "plain").exists()


def test_a_stopped_sweep_goes_on_at_the_point_where_it_stopped(recipe, tmp_path, monkeypatch):
    from lasa.run import training

    run, trained = tmp_path / "run", []
    whole = training.align_system

    def stop_at_the_second_point(*args, name, **kwargs):
        if name == "swept, point 1" and trained.count(name) == 0:
            trained.append(name)
            raise KeyboardInterrupt
        trained.append(name)
        whole(*args, name=name, **kwargs)

    monkeypatch.setattr(training, "align_system", stop_at_the_second_point)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(check_recipe(recipe, "test"), run)
    run_recipe(check_recipe(recipe, "test"), run)
    assert trained == ["plain", "swept, point 0", "swept, point 1", "swept, point 1"]


def test_the_choice_never_sees_a_benchmark(recipe, tmp_path):
    recipe["alignment"]["development"] = [recipe["evaluation"]["benchmarks"]["combinations"]]
    with pytest.raises(DataError, match="also asked in the evaluation"):
        run_recipe(check_recipe(recipe, "test"), tmp_path / "run")


def test_the_lowest_attack_success_above_the_floor_is_chosen():
    points = [Reached(0.30, 0.99), Reached(0.02, 0.93), Reached(0.02, 0.95), Reached(0.0, 0.4)]
    choice = choose(points, 0.9)
    assert (choice.point, choice.reaches_floor) == (2, True)
    assert "of the 3 of 4 points that reach the helpfulness floor of 90%" in choice.verdict


def test_where_no_point_reaches_the_floor_the_most_helpful_one_is_chosen_and_that_is_said():
    choice = choose([Reached(0.0, 0.2), Reached(0.9, 0.8), Reached(0.5, 0.8)], 0.9)
    assert (choice.point, choice.reaches_floor) == (2, False)
    assert "none of which reaches the helpfulness floor" in choice.verdict


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ({"sweep": [{"steps": 3}]}, "a sweep needs a method"),
        ({"method": "kto", "sweep": [{"learning_rate": -1}]}, "a point of the sweep: learning_rate"),
        ({"method": "kto", "sweep": [{"speed": 3}]}, "a point of the sweep: speed"),
        ({"method": "kto", "sweep": [{"guarded": True}]}, "cannot set 'guarded'"),
    ],
)
def test_a_wrong_sweep_is_refused(recipe, system, message):
    recipe["systems"]["swept"] = system
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe, "test")


def test_a_sweep_without_development_data_is_refused(recipe):
    recipe["alignment"]["development"] = []
    with pytest.raises(RecipeError, match=r"set alignment\.development"):
        check_recipe(recipe, "test")
