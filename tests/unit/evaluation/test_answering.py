import copy
from dataclasses import replace

import pytest

from conftest import TEMPLATE
from guards import build_guard, lively_model
from lasa.conditioning.decision import Policy
from lasa.evaluation.answering import LocalModel
from lasa.models.generation import Generated, GenerationSettings, generate
from lasa.models.rendering import render

SETTINGS = GenerationSettings(max_new_tokens=8)


@pytest.fixture
def model(tokenizer):
    return lively_model("llama", tokenizer)


def prefilled(prompts, text="Sure, "):
    return [replace(prompt, details={"prefill": text}) for prompt in prompts]


def test_a_plain_model_answers_as_it_generates(model, tokenizer, prompts):
    answers = LocalModel(model, tokenizer, None, SETTINGS)(prompts)
    ids = [render(tokenizer, prompt.messages).token_ids for prompt in prompts]
    assert [answer.text for answer in answers] == [one.text for one in generate(model, tokenizer, ids, SETTINGS)]
    assert {(answer.score, answer.flagged) for answer in answers} == {(None, None)}


def test_a_prefill_is_the_beginning_of_the_answer(model, tokenizer, prompts):
    asked = prefilled(prompts)
    answers = LocalModel(model, tokenizer, None, SETTINGS)(asked)
    assert all(answer.text.startswith("Sure, ") for answer in answers)
    ids = [
        render(tokenizer, p.messages).token_ids + tokenizer("Sure, ", add_special_tokens=False)["input_ids"]
        for p in asked
    ]
    assert [answer.text[6:] for answer in answers] == [one.text for one in generate(model, tokenizer, ids, SETTINGS)]


def test_a_guarded_model_has_scores_and_decisions(model, tokenizer, prompts):
    guard = build_guard(model, tokenizer, prompts)
    answers = LocalModel(model, tokenizer, guard, SETTINGS)(prompts)
    guarded = guard.generate([p.messages for p in prompts], SETTINGS)
    assert [(a.text, a.score, a.flagged) for a in answers] == [
        (one.answer.text, one.decision.score, one.decision.flagged) for one in guarded
    ]
    assert {answer.flagged for answer in answers} == {True, False}


def test_a_refusal_in_place_of_an_answer_has_no_prefill(model, tokenizer, prompts):
    guard = build_guard(model, tokenizer, prompts, flagged=1, policy=Policy("refuse"))
    answers = LocalModel(model, tokenizer, guard, SETTINGS)(prefilled(prompts))
    assert not any(answer.text.startswith("Sure") for answer in answers)
    guard = build_guard(model, tokenizer, prompts, flagged=0)
    assert all(a.text.startswith("Sure, ") for a in LocalModel(model, tokenizer, guard, SETTINGS)(prefilled(prompts)))


def test_tokens_are_those_of_prompt_prefill_condition_and_answer(model, tokenizer, prompts):
    rendered = len(render(tokenizer, prompts[0].messages).token_ids)
    plain = LocalModel(model, tokenizer, None, SETTINGS)
    assert plain.tokens(prompts[0]) == rendered + 8
    assert plain.tokens(prefilled(prompts)[0]) > plain.tokens(prompts[0])
    guarded = LocalModel(model, tokenizer, build_guard(model, tokenizer, prompts), SETTINGS)
    assert guarded.tokens(prompts[0]) > plain.tokens(prompts[0])


def test_a_prompt_beyond_the_context_has_no_answer_and_a_long_one_a_shorter_answer(model, tokenizer, prompts):
    ids = render(tokenizer, prompts[0].messages).token_ids
    too_long = replace(prompts[0], messages=({"role": "user", "content": "water " * 600},))
    settings = GenerationSettings(max_new_tokens=600)
    fits, none = LocalModel(model, tokenizer, None, settings)([prompts[0], too_long])
    room = GenerationSettings(max_new_tokens=512 - len(ids))
    assert fits.text == generate(model, tokenizer, [ids], room)[0].text
    assert none.text == ""
    assert "the model's context is 512" in none.failure
    guard = build_guard(model, tokenizer, prompts, flagged=0)
    fits, none = LocalModel(model, tokenizer, guard, SETTINGS)([prompts[0], too_long])
    assert (fits.failure, none.flagged) == ("", None)
    assert "the model's context is 512" in none.failure


def thinking(monkeypatch, tokenizer, texts, finish_reason="stop"):
    """Have models write these texts, whatever they are asked."""

    def write(*_, **__):
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return [Generated(one, text, finish_reason) for one, text in zip(ids, texts, strict=True)]

    monkeypatch.setattr("lasa.evaluation.answering.generate", write)


def test_what_a_model_thinks_is_no_part_of_its_answer(model, tokenizer, prompts, monkeypatch):
    thinking(monkeypatch, tokenizer, ["<think>\nThe user asks.\n</think>\n\nYes.", "Yes."])
    first, second = LocalModel(model, tokenizer, None, SETTINGS)(prompts[:2])
    assert (first.text, first.reasoning, first.failure) == ("Yes.", "The user asks.", "")
    assert (second.text, second.reasoning, second.finish_reason) == ("Yes.", "", "stop")


def test_a_model_that_still_thinks_at_the_limit_has_not_answered(model, tokenizer, prompts, monkeypatch):
    thinking(monkeypatch, tokenizer, ["<think>\nThe user asks."], "length")
    (answer,) = LocalModel(model, tokenizer, None, SETTINGS)(prompts[:1])
    assert answer.failure.startswith("unfinished")
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("", "The user asks.", "length")


def test_a_template_that_opens_the_block_is_known(model, tokenizer, prompts, monkeypatch):
    opening = copy.deepcopy(tokenizer)
    opening.chat_template = TEMPLATE.replace("'<|assistant|>'", "'<|assistant|><think>'")
    thinking(monkeypatch, opening, ["The user asks", "The user asks.</think>Yes."])
    first, second = LocalModel(model, opening, None, SETTINGS)(prompts[:2])
    assert first.failure.startswith("unfinished")
    assert (second.text, second.reasoning) == ("Yes.", "The user asks.")


def test_a_prefill_stands_before_an_answer_without_its_thoughts(model, tokenizer, prompts, monkeypatch):
    thinking(monkeypatch, tokenizer, ["<think>Hm.</think>here it is."])
    (answer,) = LocalModel(model, tokenizer, None, SETTINGS)(prefilled(prompts[:1]))
    assert answer.text == "Sure, here it is."
