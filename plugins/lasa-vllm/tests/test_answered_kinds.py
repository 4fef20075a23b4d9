"""Kinds of harm that are to be answered: what is named as one is neither conditioned nor stopped."""

import random

import pytest
import torch
from engines import engine
from lasa_vllm.models import is_named
from lasa_vllm.settings import Settings, answered_kinds
from test_processors import END, VOCABULARY, V1Runner, V2Runner, simulated
from test_stopping import ENGINE, LISTENING, Spoken
from vllm import SamplingParams

from guards import build_interpreter
from lasa.data.prompts import user_prompt
from lasa.errors import GuardError


def test_kinds_that_are_to_be_answered(tiny):
    case = tiny("llama")
    prompts = [user_prompt(str(n), "en", c[0]["content"]) for n, c in enumerate(case.conversations)]
    model, tokenizer = case.guard.model, case.guard.tokenizer
    probe = build_interpreter(model, tokenizer, prompts, flagged=1, kinds=("privacy", "hate"))
    states = torch.randn(50, probe.config.width)
    named = probe.category_probabilities(states).argmax(-1)
    for number, kind in enumerate(("privacy", "hate")):
        assert answered_kinds(Settings("folder", answered=(kind,)), probe.config) == [number]
        assert is_named(probe, states, [number]).tolist() == (named == number).tolist()
    object.__setattr__(probe.config.categories, "threshold", 1.0)
    assert not is_named(probe, states, [0, 1]).any()
    assert not is_named(probe, states * torch.nan, [0, 1]).any()
    with pytest.raises(GuardError, match="tells apart privacy, hate"):
        answered_kinds(Settings("folder", answered=("weapons",)), probe.config)
    assert not is_named(case.guard.interpreter, states, [0]).any()


def test_what_is_spared_is_not_conditioned_and_not_stopped(monkeypatch):
    for runner in (V1Runner, V2Runner):
        decisions, draw = simulated(monkeypatch, LISTENING), random.Random(0)
        engine, one = runner(ENGINE, draw), Spoken(0, draw)
        one.prompt, one.heard, one.written = [1, 3, 4], [3.0] * 5, []
        one.params = SamplingParams(max_tokens=12)
        for _ in range(6):
            engine.arrange([one])
            one.read = len(one.prompt + one.written)
            decisions.put(torch.tensor([1.0]), 0.5, torch.tensor([True]), torch.tensor([9.0]))
            logits = torch.full((1, VOCABULARY), -50.0)
            logits[0, one.own] = 0.0
            one.written.append(int(engine.apply([one], logits).argmax(dim=-1)))
        assert one.written == [11, 12, 13, 14, 15, END]


def test_a_kind_that_the_interpreter_does_not_know_does_not_start(tiny):
    with pytest.raises(Exception, match="does not know"), engine(tiny("llama"), lasa={"answered": ["weapons"]}):
        pass
