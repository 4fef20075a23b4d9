"""The recipes that ship are recipes."""

from pathlib import Path

import pytest

from lasa.run.recipe import read_recipe

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid(path):
    assert read_recipe(path).systems


def test_the_ablations_are_lasa_with_one_thing_changed():
    systems = read_recipe(next(path for path in RECIPES if path.stem == "embedded-ablations")).systems
    lasa = systems["lasa"].model_dump()
    for name, system in systems.items():
        if name.startswith("lasa-"):
            changed = [field for field, value in system.model_dump().items() if value != lasa[field]]
            assert len(changed) == 1, name
    assert {system.preferences for system in systems.values()} == {None}


def test_the_baselines_are_swept():
    systems = read_recipe(next(path for path in RECIPES if path.stem == "embedded-baselines")).systems
    assert all(
        len(systems[name].sweep) > 1 for name in ("surface-sft", "surface-kto", "surface-dpo", "consistency-kto")
    )


def test_lasa_is_trained_alike_in_every_embedded_recipe():
    lasas = [read_recipe(path).systems["lasa"] for path in RECIPES if path.stem.startswith("embedded")]
    assert len(lasas) == 3 and all(one == lasas[0] for one in lasas)


@pytest.mark.parametrize("stem", ["qwen2.5-coder-0.5b", "qwen2.5-7b-instruct"])
def test_the_recipes_of_real_models_learn_from_labelled_prompts_alone(stem):
    recipe = read_recipe(next(path for path in RECIPES if path.stem == stem))
    systems = recipe.systems
    assert recipe.alignment.preferences == "own" and recipe.alignment.refusals is None
    assert systems["lasa"].trusts and systems["lasa"].adapter == "behind_condition"
    assert systems["lasa-early"].interpreter_layer == 1
    assert systems["fixed-refusal"].action == "refuse" and systems["fixed-refusal"].method is None
    assert all(len(systems[name].sweep) > 1 for name in ("surface-sft", "surface-kto"))
    benchmarks = set(recipe.evaluation.benchmarks.values())
    learned = {*recipe.interpreter.train, *recipe.alignment.harmless, *recipe.alignment.development}
    assert not {source.partition("?")[0] for source in learned} & {
        part.partition("?")[0] for source in benchmarks for part in source.split(" + ")
    }
