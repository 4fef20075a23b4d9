"""What systems learn from: the model's own answers, safety data in the seen languages, and nothing a benchmark asks."""

import json

import pytest

from lasa.data.preferences import Preference, write_preferences
from lasa.data.prompt_tables import write_prompts
from lasa.data.prompts import user_prompt
from lasa.errors import DataError, RecipeError
from lasa.evaluation.outcomes import Outcome, Sample, Verdict
from lasa.run.folder import RunFolder
from lasa.run.preferences import (
    OWN_ANSWERS,
    answers_to_learn,
    harmless_text,
    own_preferences,
    own_prompts,
    preferences_of,
    uses_own,
)
from lasa.run.recipe import check_recipe
from lasa.run.systems import system_of_run
from miniature import write_recipe

REFUSALS = {"en": ["no"], "ko": ["ani"]}


def drawn(query, language, harmful, text, outcome, answer_language, **extra):
    prompt = user_prompt(query, language, f"ask {query}", harmful=harmful)
    return Sample(
        "own",
        prompt,
        text,
        Verdict(Outcome(outcome) if outcome else None, answer_language),
        "refusal-patterns",
        extra=extra,
    )


def learned(*samples):
    return [(one.chosen, one.rejected, one.unfinished) for one in own_preferences(samples, REFUSALS, seed=0)]


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (drawn("a", "ko", True, "here", "complied", "ko"), [("ani", "here", None)]),
        (drawn("a", "ko", True, "here", "complied", "ko", unfinished=True), [("ani", "here", "rejected")]),
        (drawn("a", "ko", True, "ani ani", "refused", "ko"), [("ani ani", None, None)]),
        (drawn("a", "ko", True, "no sorry", "refused", "en"), [("ani", "no sorry", None)]),
        (drawn("a", "ko", True, " ", "irrelevant", None), [("ani", None, None)]),
        (drawn("b", "en", False, "tea", "complied", "en", unfinished=True), [("tea", None, "chosen")]),
        (drawn("b", "en", False, "42", None, None), [("42", None, None)]),
        (drawn("b", "en", False, "no", "refused", "en"), []),
        (drawn("b", "en", False, "", "irrelevant", None), []),
        (drawn("a", "ko", True, "", None, None, failure="too long"), []),
    ],
    ids=["complied", "cut", "refused", "refused-elsewhere", "empty", "helped", "unclear", "over-refused", "empty-help",
         "failed"],
)  # fmt: skip
def test_what_is_learned_from_an_answer(sample, expected):
    assert learned(sample) == expected


@pytest.fixture
def run(tmp_path):
    def build(leaks="refuse", **alignment):
        plain = write_recipe(tmp_path)
        plain["interpreter"]["leaks"] = leaks
        plain["alignment"].update(alignment)
        return RunFolder(tmp_path / "run", check_recipe(plain, "test"))

    return build


def test_own_prompts_are_the_interpreters_without_perturbed_copies(run):
    recipe = run(preferences="own", own_questions=2).recipe
    copied = recipe.interpreter.model_copy(update={"perturbed_copies": ["typos"]})
    prompts = own_prompts(recipe.model_copy(update={"interpreter": copied}))
    assert prompts == own_prompts(recipe)
    assert {p.language for p in prompts} == {"en", "zh"}
    for code in ("en", "zh"):
        for label in (True, False):
            assert len({p.query_id for p in prompts if (p.language, p.harmful) == (code, label)}) == 2
    assert uses_own(recipe) and not uses_own(run().recipe)


def rows_of(tmp_path, *rows):
    write_preferences(
        tmp_path / "preferences.jsonl",
        [Preference(user_prompt(q, code, text, harmful=harmful), "a", "b") for q, code, text, harmful in rows],
    )


def test_safety_data_in_unseen_languages_is_not_learned(run, tmp_path):
    built = run()
    rows_of(tmp_path, ("a", "sw", "x", True), ("b", "en", "y", True), ("c", "sw", "z", False))
    kept = preferences_of(built, built.recipe.systems["lasa"])
    assert [(one.prompt.query_id, one.prompt.language) for one in kept] == [("b", "en"), ("c", "sw")]
    rows_of(tmp_path, ("a", "sw", "x", True))
    with pytest.raises(DataError, match="no preference is left in en, zh"):
        preferences_of(built, built.recipe.systems["lasa"])


def test_a_preference_that_a_benchmark_asks_stops_the_run(run, tmp_path):
    built = run()
    write_prompts(tmp_path / "hard.jsonl", [user_prompt("q", "sw", "Ask  THIS!", harmful=True)])
    rows_of(tmp_path, ("a", "en", "ask this", True), ("b", "en", "y", True))
    with pytest.raises(DataError, match=r"1 of 2 training rows .* also asked in the evaluation"):
        preferences_of(built, built.recipe.systems["lasa"])
    for policy, left in (("drop", ["b"]), ("allow", ["a", "b"])):
        interpreter = built.recipe.interpreter.model_copy(update={"leaks": policy})
        built.recipe = built.recipe.model_copy(update={"interpreter": interpreter})
        assert [one.prompt.query_id for one in preferences_of(built, built.recipe.systems["lasa"])] == left


def test_harmless_text_that_a_benchmark_asks_stops_the_run(run, tmp_path):
    built = run(harmless=[str(tmp_path / "text.jsonl")])
    write_prompts(tmp_path / "hard.jsonl", [user_prompt("q", "sw", "Chai ni tamu.", harmful=False)])
    write_prompts(tmp_path / "text.jsonl", [user_prompt("t", "sw", "chai ni tamu", harmful=False)])
    with pytest.raises(DataError, match="also asked in the evaluation"):
        harmless_text(built.recipe)


def test_an_adapter_behind_the_condition_asks_for_harmless_text(tmp_path):
    behind = {"method": "sft", "signal": "always", "guarded": True, "lora_rank": 2, "adapter": "behind_condition"}
    with pytest.raises(RecipeError, match=r"systems\.lasa learns to refuse from harmless text"):
        check_recipe(write_recipe(tmp_path, {"lasa": behind}), "test")
    check_recipe(write_recipe(tmp_path, {"lasa": {**behind, "refusals_from": "preferences"}}), "test")


def test_the_fixed_refusal_is_a_system_of_its_own(tmp_path):
    recipe = check_recipe(write_recipe(tmp_path, {"floor": {"guarded": True, "action": "refuse"}}), "test")
    assert system_of_run(tmp_path / "run", recipe, "floor").action == "refuse"
    with pytest.raises(RecipeError, match="the action refuse is the guard's"):
        check_recipe(write_recipe(tmp_path, {"floor": {"action": "refuse"}}), "test")


def test_the_head_for_answers_learns_from_own_answers_by_their_outcome(run):
    made = run()
    own = made.recipe.interpreter.model_copy(update={"answers": ["own"]})
    made.recipe = made.recipe.model_copy(update={"interpreter": own})
    assert uses_own(made.recipe)
    samples = [
        drawn("a", "en", True, "here", "complied", "en"),
        drawn("b", "zh", True, "here it is", "wrong_language", "en"),
        drawn("c", "en", True, "no", "refused", "en"),
        drawn("d", "en", True, "blue", "irrelevant", "en"),
        drawn("e", "sw", True, "haya", "complied", "sw"),  # a harmful answer in an unseen language
        drawn("f", "sw", False, "chai", "complied", "sw"),
        drawn("g", "en", False, "42", None, None),
    ]
    made.path.mkdir(exist_ok=True)
    lines = [json.dumps(sample.to_json()) for sample in samples]
    (made.path / OWN_ANSWERS).write_text("\n".join(lines) + "\n", "utf-8")
    found = [(one.text, one.harmful) for one in answers_to_learn(made)]
    assert found == [("here", True), ("here it is", True), ("no", False), ("chai", False)]


def test_the_head_for_answers_learns_from_preferences_of_a_file(run):
    made = run()
    source = made.recipe.alignment.preferences
    listening = made.recipe.interpreter.model_copy(update={"answers": [source]})
    made.recipe = made.recipe.model_copy(update={"interpreter": listening})
    found = answers_to_learn(made)
    assert not uses_own(made.recipe)
    assert {one.prompt.language for one in found if one.harmful} <= {"en", "zh"}
    assert {one.harmful for one in found} == {True, False}
    assert answers_to_learn(run()) == []
