"""A recipe is YAML from anyone: plain values of a sane size, or one named error."""

import pytest

from lasa.errors import RecipeError
from lasa.run.recipe import read_recipe

BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "larger than any recipe"),
        (MERGES, "larger than any recipe"),
        ("a: &a [*a]\n", "larger than any recipe"),
        ("x" * 100_001, "larger than any recipe"),
        ("!!python/object/apply:os.system [exit]", "could not determine a constructor"),
        ("!!timestamp 9-9-9", "not a readable YAML file"),
        ("!!bool x", "not a readable YAML file"),
        ("!!int ''", "not a readable YAML file"),
        ("seed: " + "1" * 5000, "not a readable YAML file"),
        ("[" * 500, "not a readable YAML file"),
        ("a: [", "not a readable YAML file"),
        ("- a", "a recipe is a mapping of settings"),
        ("", "a recipe is a mapping of settings"),
        (b"\xff", "not UTF-8 text at byte 0"),
    ],
    ids=range(14),
)
def test_a_hostile_recipe_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeError, match=f"recipe.yaml.*{message}"):
        read_recipe(path)


def test_settings_may_be_shared_by_an_alias(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        """
model: {path: embedded}
seen_languages: [en]
layer_search: {prompts: [p.csv]}
interpreter: {train: [t.csv]}
alignment: {preferences: a.jsonl}
systems:
  one: &training {method: sft, steps: 7}
  two: {<<: *training, method: kto}
evaluation: {benchmarks: {b: b.csv}}
"""
    )
    assert read_recipe(path).systems["two"].steps == 7
