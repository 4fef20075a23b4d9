from dataclasses import replace

import numpy as np
import pytest
import torch

from interpreters import config
from lasa.data.prompts import user_prompt
from lasa.interpreter.categories import LEAST_QUESTIONS, add_categories, naming_threshold
from lasa.interpreter.category_evaluation import evaluate_categories
from lasa.interpreter.probe import SafetySemanticInterpreter, load_interpreter
from lasa.interpreter.training import LabelledStates

KINDS = ("violence", "crime", "hate")
WIDTH = 16


def states(questions, *, name="q", languages=("en", "zh"), kinds=KINDS, noise=0.3, seed=0):
    """Harmful prompts of each kind, shifted along an axis of its own, and as many harmless ones."""
    generator = torch.Generator().manual_seed(seed)
    rows = [(kind, n, code) for kind in (*kinds, "") for n in range(questions) for code in languages]
    prompts = [
        user_prompt(f"{name}-{k}-{n}", code, f"{code} {k} {name} {n}", harmful=bool(k), source="test", category=k)
        for k, n, code in rows
    ]
    found = noise * torch.randn(len(rows), WIDTH, generator=generator)
    for row, (kind, _, _) in enumerate(rows):
        if kind:
            found[row, kinds.index(kind)] += 3
    return LabelledStates(found, prompts)


def probe(**settings):
    torch.manual_seed(0)
    return SafetySemanticInterpreter(config(hidden=0, parameters=33, parameter_share=0.001, **settings)).eval()


@pytest.fixture(scope="module")
def named():
    return add_categories(probe(), states(LEAST_QUESTIONS), states(20, name="d", seed=1), 0.1)


def test_it_names_the_kind_of_harm_in_a_language_it_never_saw(named):
    interpreter, statement = named
    test = states(20, name="t", languages=("en", "sw"), seed=2)
    found = evaluate_categories(interpreter, test, states(LEAST_QUESTIONS), ["en", "zh"])
    assert interpreter.config.categories.names == KINDS
    assert found["languages"]["sw"]["right"]["value"] == 1 and found["unseen"]["right"]["n"] == 60
    assert found["all"]["right_when_named"]["value"] == 1 and found["all"]["named"]["value"] > 0.9
    assert set(found["kinds"]) == set(KINDS) and found["kinds"]["hate"]["right"]["n"] == 40
    assert found["all"]["ngrams_right"]["value"] == 1  # the words give it away
    assert "At most 10% of the kinds named are wrong" in statement


def test_the_score_of_harm_stays_as_it_was(named):
    before, (after, _) = probe(), named
    rows = states(5).states
    assert torch.equal(before.probability(rows), after.probability(rows))
    assert after.config.parameters == after.num_parameters()


def test_probabilities_are_calibrated_and_sum_to_one(named):
    interpreter, _ = named
    given = interpreter.category_probabilities(states(5).states)
    assert given.shape == (40, 3) and torch.allclose(given.sum(-1), torch.ones(40), atol=1e-5)
    assert interpreter.read(states(5).states)[0].categories == pytest.approx(given[0].tolist())


def test_a_prompt_of_several_kinds_is_right_with_any_of_them(named):
    interpreter, _ = named
    test = states(1, kinds=("violence",))
    tagged = [replace(p, details={"tags": ["crime"]}, category="hate") if p.harmful else p for p in test.prompts]
    found = evaluate_categories(interpreter, LabelledStates(test.states, tagged), states(20), ["en"])
    assert found["all"]["right"]["value"] == 0  # it says violence
    tagged = [replace(p, details={"tags": ["violence"]}) if p.harmful else p for p in tagged]
    found = evaluate_categories(interpreter, LabelledStates(test.states, tagged), states(20), ["en"])
    assert found["all"]["right"]["value"] == 1 and set(found["kinds"]) == {"hate"}


def test_kinds_with_few_questions_are_not_told_apart():
    few = states(LEAST_QUESTIONS - 1)
    interpreter, statement = add_categories(probe(), few, states(20, name="d"), 0.1)
    assert interpreter.config.categories is None and statement is None
    assert interpreter.read(few.states[:1])[0].categories == ()
    assert evaluate_categories(interpreter, few, few, ["en"]) == {}


def test_two_kinds_are_told_apart_as_well():
    interpreter, _ = add_categories(probe(), states(20, kinds=KINDS[:2]), states(20, name="d", kinds=KINDS[:2]), 0.1)
    best = interpreter.category_probabilities(states(1, kinds=KINDS[:2]).states).argmax(-1)
    assert best[:4].tolist() == [0, 0, 1, 1]


def test_it_is_sealed_with_the_interpreter(named, tmp_path):
    interpreter, _ = named
    interpreter.save_pretrained(tmp_path / "interpreter")
    again = load_interpreter(tmp_path / "interpreter")
    assert again.config.categories == interpreter.config.categories
    rows = states(5).states
    assert torch.equal(again.category_probabilities(rows), interpreter.category_probabilities(rows))
    assert "kinds of harm" in (tmp_path / "interpreter" / "README.md").read_text()


class TestThreshold:
    def test_the_bound_holds_on_fresh_prompts_as_often_as_promised(self):
        draw = np.random.default_rng(0)

        def sample(rows):
            confidence = draw.uniform(0.4, 1, rows)
            right = draw.uniform(size=rows) < confidence**2  # overconfident
            given = torch.tensor(np.stack([confidence, 1 - confidence], 1))
            return given, np.where(confidence > 0.5, np.where(right, 0, 1), np.where(right, 1, 0))

        given, truth = sample(100_000)
        wrong, sure = given.argmax(-1).numpy() != truth, given.max(-1).values.numpy()
        thresholds = [one for one in (naming_threshold(*sample(1000), 0.2) for _ in range(100)) if one.guaranteed]
        assert len(thresholds) > 90
        broken = sum(wrong[sure >= threshold.value].mean() > 0.2 for threshold in thresholds)
        assert broken <= 11  # at most 5 % promised: 11 of 100 or fewer with a probability of .996

    def test_without_rows_enough_nothing_is_promised(self):
        threshold = naming_threshold(torch.tensor([[0.9, 0.1]] * 10), np.zeros(10, dtype=np.int64), 0.1)
        assert (threshold.value, threshold.guaranteed) == (0.5, False) and "No guarantee" in threshold.statement

    def test_where_half_are_wrong_nothing_is_promised(self):
        truth = np.arange(200) % 2
        assert not naming_threshold(torch.tensor([[0.9, 0.1]] * 200), truth, 0.1).guaranteed
