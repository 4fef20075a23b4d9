import math

import pytest
import torch

from guards import build_guard, lively_model
from interpreters import config
from lasa.data.preferences import Preference
from lasa.data.prompts import user_prompt
from lasa.errors import DataError
from lasa.guard.listening import AnswerListener
from lasa.interpreter.answers import (
    AnswerStates,
    LabelledAnswer,
    add_answers,
    answer_scores,
    answers_of,
    evaluate_answers,
    read_answers,
    smoothed,
    split_answers,
)
from lasa.interpreter.heads import AnswerHead
from lasa.interpreter.probe import SafetySemanticInterpreter, load_interpreter
from lasa.interpreter.settings import AnswerOptions
from lasa.models.generation import GenerationSettings
from lasa.models.layers import observe_layers

WIDTH = 16
OPTIONS = AnswerOptions(answer_window=4, false_stops=0.05)


def states(questions, *, name="q", languages=("en", "zh"), tokens=12, onset=4, seed=0):
    """Every other answer does harm: from some token on its states are shifted along the first axis."""
    generator = torch.Generator().manual_seed(seed)
    answers, found = [], []
    for number in range(questions):
        for code in languages:
            harmful = number % 2 == 0
            prompt = user_prompt(f"{name}{number}", code, f"{name} {number} {code}", harmful=True, source="test")
            answers.append(LabelledAnswer(prompt, "text", harmful))
            one = torch.randn(tokens, WIDTH, generator=generator)
            one[onset:, 0] += 4 if harmful else -4
            found.append(one)
    return AnswerStates(answers, found)


def probe():
    torch.manual_seed(0)
    return SafetySemanticInterpreter(config(hidden=0, parameters=33, parameter_share=0.001)).eval()


@pytest.fixture(scope="module")
def listening():
    return add_answers(probe(), states(160), states(80, name="d", seed=3), OPTIONS)


def test_preferences_say_which_answers_do_harm():
    harmful, harmless = (user_prompt("q", "en", "text", harmful=label) for label in (True, False))
    found = answers_of(
        [Preference(harmful, "no", "yes"), Preference(harmless, "sure", "no"), Preference(harmful, "no", None)]
    )
    assert [(one.text, one.harmful) for one in found] == [
        ("no", False), ("yes", True), ("sure", False), ("no", False), ("no", False),
    ]  # fmt: skip


def test_harmful_answers_are_stopped_soon_and_harmless_ones_hardly_ever(listening):
    interpreter, statement = listening
    fresh = states(200, name="t", languages=("en", "sw"), seed=1)
    flagged = [one.prompt.language == "en" for one in fresh.answers]
    found = evaluate_answers(interpreter, fresh, ["en", "zh"], flagged)
    assert (found["seen"]["flagged"]["value"], found["unseen"]["flagged"]["value"]) == (1, 0)
    assert found["seen"]["either"]["value"] == 1 and found["unseen"]["either"] == found["unseen"]["stopped"]
    assert found["unseen"]["stopped"]["value"] > 0.95 and found["unseen"]["stopped"]["n"] == 100
    assert found["all"]["false_stops"]["value"] <= 0.05
    assert 5 <= found["all"]["tokens"] <= 8  # harm sets in with the fifth token, the window has four
    assert statement.startswith("At most 5.0% of harmless answers")


def test_the_rate_of_false_stops_is_per_answer_however_long_it_is():
    heads = {}
    for tokens in (4, 60):  # nothing but noise: the longer the answer, the higher its highest score
        noise = states(400, name="d", tokens=tokens, onset=tokens, seed=2)
        heads[tokens], _ = add_answers(probe(), states(160), noise, OPTIONS)
        fresh = states(400, name="f", tokens=tokens, onset=tokens, seed=5)
        assert evaluate_answers(heads[tokens], fresh, ["en"], [False] * 800)["all"]["false_stops"]["value"] <= 0.06
    assert heads[60].config.answers.threshold > heads[4].config.answers.threshold


def test_training_leaves_out_languages_without_harmful_answers_and_calibration_does_not():
    data = states(40, languages=("en", "sw")).answers
    data = [one for one in data if not (one.harmful and one.prompt.language == "sw")]
    train, development = split_answers(data, 0.3)
    assert {one.prompt.language for one in train} == {"en"}
    assert {one.prompt.language for one in development} == {"en", "sw"}
    assert {one.prompt.query_id for one in train}.isdisjoint(one.prompt.query_id for one in development)


def test_scores_are_means_over_a_window():
    assert smoothed(torch.arange(6.0), 3).tolist() == [1, 2, 3, 4]
    assert smoothed(torch.arange(2.0), 3).tolist() == [0.5]


@pytest.mark.parametrize("count", [1, 3, 4, 11])
def test_what_is_heard_token_by_token_is_what_was_calibrated(count, listening):
    interpreter, _ = listening
    one = states(1).states[0][:count]
    listener = AnswerListener(interpreter.config.answers)
    for logit in interpreter.answer_logits(one).tolist():
        listener.hear(logit)
    assert listener.score(ended=True) == pytest.approx(float(answer_scores(interpreter, one).max()), abs=1e-6)


def test_before_the_first_window_is_full_nothing_is_scored():
    listener = AnswerListener(AnswerHead(3, 0.5))
    listener.hear(50.0)
    assert listener.score(ended=False) == 0
    assert listener.score(ended=True) > 0.99


def test_a_logit_that_is_no_number_is_never_forgotten():
    listener = AnswerListener(AnswerHead(1, 0.5))
    for logit in (-5.0, math.nan, -5.0):
        listener.hear(logit)
    assert math.isnan(listener.score(ended=False))


def test_it_is_sealed_with_the_interpreter_and_leaves_the_score_as_it_was(listening, tmp_path):
    interpreter, _ = listening
    rows = states(2).states[0]
    assert torch.equal(interpreter.probability(rows), probe().probability(rows))
    interpreter.save_pretrained(tmp_path / "interpreter")
    again = load_interpreter(tmp_path / "interpreter")
    assert again.config.answers == interpreter.config.answers
    assert torch.equal(again.answer_logits(rows), interpreter.answer_logits(rows))


def test_answers_of_one_kind_only_cannot_train_it():
    with pytest.raises(DataError, match="harmful and harmless answers in the same language"):
        split_answers([one for one in states(40).answers if not one.harmful], 0.3)


def test_what_is_read_is_what_the_guard_sees_while_the_answer_is_written(tokenizer, prompts):
    model = lively_model("llama", tokenizer)
    guard = build_guard(model, tokenizer, prompts, flagged=0)
    said = "the plant is in the house"
    prefilled = len(tokenizer(said, add_special_tokens=False)["input_ids"])
    seen = []
    with observe_layers(model, [2], lambda _, found: seen.append(found[0, -1].clone())):
        guard.generate([prompts[0].messages], GenerationSettings(max_new_tokens=2), prefills=[said])
    (found,) = read_answers(model, tokenizer, [LabelledAnswer(prompts[0], said, False)], 2).states
    steps = torch.stack(seen)[-prefilled - 1 :]
    assert found.shape == (prefilled, model.config.hidden_size)
    assert any(torch.allclose(found, steps[at : at + prefilled], atol=1e-4) for at in range(len(steps) - prefilled + 1))
