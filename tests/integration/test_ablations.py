"""Every baseline and ablation is one switch of a recipe."""

import json
from dataclasses import replace

import pytest

from lasa.conditioning.condition import condition_ids
from lasa.data.prompt_tables import read_prompts, write_prompts
from lasa.errors import RecipeError
from lasa.files.artifacts import read_json
from lasa.interpreter.probe import load_interpreter
from lasa.models.loading import load_model
from lasa.models.soft_condition import SoftCondition, soft_condition_of
from lasa.pipeline import run_recipe
from lasa.run.recipe import check_recipe
from lasa.run.systems import find_system
from miniature import write_model, write_preferences, write_recipe

LASA = {"method": "kto", "signal": "interpreter", "guarded": True}
SYSTEMS = {
    "surface-dpo": {"method": "dpo"},
    "consistency": {"method": "kto", "consistency": 1.0},
    "early": {**LASA, "interpreter_layer": "early"},
    "late": {**LASA, "interpreter_layer": "late"},
    "third": {**LASA, "interpreter_layer": 3},
    "oracle": {**LASA, "signal": "label"},
    "unread": {**LASA, "guarded": False},
    "soft": {**LASA, "signal": "soft"},
    "soft-adapter": {**LASA, "signal": "soft", "lora_rank": 2},
    "in-language": {**LASA, "signal": "label", "wrong_language_refusals": 0.5},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
    from lasa.data.world import tables

    folder = tmp_path_factory.mktemp("ablations")
    write_model(folder / "model", tokenizer)
    recipe = write_recipe(folder, SYSTEMS)
    del recipe["evaluation"]["benchmarks"]["templates"]
    recipe["layer_search"]["prompts"] = split_by_language(folder / "search.jsonl")
    write_preferences(folder / "preferences.jsonl", tables.preferences(("en", "zh"), 6, 6, ("en", "zh")))
    run_recipe(check_recipe(recipe, "test"), folder / "run")
    return folder / "run"


def split_by_language(file):
    """Files of one language each, whose rows do not say where they come from."""
    languages: dict[str, list] = {}
    for prompt in read_prompts(file):
        languages.setdefault(prompt.language, []).append(replace(prompt, source=""))
    for code, prompts in languages.items():
        write_prompts(file.with_stem(code), prompts)
    return [str(file.with_stem(code)) for code in languages]


def test_every_switch_gives_a_system_with_metrics(run):
    assert list(read_json(run / "metrics.json")["systems"]) == list(SYSTEMS)


@pytest.mark.parametrize(("system", "layer"), [("early", 1), ("third", 3), ("late", 4)])
def test_a_wrong_layer_has_an_interpreter_of_its_own_for_rows_and_guard(run, system, layer):
    own = load_interpreter(run / "systems" / system / "interpreter")
    assert own.config.read_point.layer == layer
    assert find_system(run=run, system=system).guard().layer == layer
    assert load_interpreter(run / "interpreter").config.read_point.layer == 2


@pytest.mark.parametrize("system", ["soft", "soft-adapter"])
def test_a_soft_system_has_learned_its_condition_and_is_guarded_with_it(run, system, tokenizer):
    model, _ = load_model(str(run / "systems" / system))
    base, _ = load_model(str(run.parent / "model"))
    start, learned = (
        SoftCondition.from_tokens(base, tokenizer, condition_ids(tokenizer)).embeddings,
        soft_condition_of(model).embeddings,
    )
    assert (learned - start).abs().max() > 1e-4
    guard = find_system(run=run, system=system).guard()
    assert guard.soft is not None
    scores = [
        json.loads(line)["score"] for line in (run / "samples" / f"{system}.jsonl").read_text("utf-8").splitlines()
    ]
    assert all(score is not None for score in scores)


def test_wrong_language_refusals_are_rows_more(run):
    rows = {name: read_json(run / "systems" / name / "lasa.json")["rows"] for name in ("oracle", "in-language")}
    assert rows["in-language"] == rows["oracle"] + 6  # half of the 12 harmful prompts


def test_oracle_labels_condition_harmful_rows_alone(run):
    assert read_json(run / "systems" / "oracle" / "lasa.json")["conditioned"] == 24


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ({"method": "kto", "signal": "soft"}, "set guarded"),
        ({"guarded": True, "interpreter_layer": "late"}, "needs a method"),
        ({"method": "sft", "consistency": 1.0}, "belongs to the method kto"),
        ({"method": "kto", "four_bit": True}, "set lora_rank"),
    ],
)
def test_switches_that_do_not_go_together_are_refused(tmp_path, system, message):
    recipe = write_recipe(tmp_path, {"one": system})
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe, "test")
