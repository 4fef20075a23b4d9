"""The recipes that ship are recipes."""

from pathlib import Path

import pytest

from lasa.recipe import read_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid(path):
    assert read_recipe(path).systems


def test_the_baselines_have_lasas_rows_and_points():
    systems = read_recipe(next(path for path in RECIPES if path.stem == "embedded-baselines")).systems
    for name in ("surface-kto", "lasa-early-layer", "lasa-oracle-labels", "lasa-unread", "lasa-soft"):
        assert systems[name].sweep == systems["lasa"].sweep
    assert all(system.sweep for system in systems.values() if system.method)
    assert {system.preferences for system in systems.values()} == {None}
