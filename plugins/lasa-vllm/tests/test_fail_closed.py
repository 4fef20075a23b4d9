"""What goes wrong ends in an error or a conditioned answer, never in an unguarded one; bad set-ups do not start."""

import pytest
import torch
from engines import ask, engine, expect
from lasa_vllm.decisions import Decisions
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError

from lasa.interpreter.probe import SafetySemanticInterpreter


@pytest.fixture
def case(tiny):
    return tiny("llama")


def test_a_crash_of_the_hook_is_an_error(case, monkeypatch):
    with engine(case) as llm:
        monkeypatch.setattr(SafetySemanticInterpreter, "probability", lambda self, states: 1 / 0)
        with pytest.raises((ZeroDivisionError, EngineDeadError)):
            ask(llm, case.conversations[:1])


def test_missing_scores_count_as_harmful(case, monkeypatch):
    with engine(case, lasa={"hide_condition": False}) as llm:
        monkeypatch.setattr(Decisions, "put", lambda self, *given: None)
        shown = ask(llm, case.conversations[:8])
    assert all(one.text.startswith(case.guard.policy.condition) for one in shown)


def test_scores_that_are_no_numbers_count_as_harmful():
    decisions = Decisions()
    decisions.put(torch.tensor([0.2, torch.nan, 0.5]), 0.5)
    assert decisions.take(3, torch.device("cpu")).flagged.tolist() == [False, True, True]
    again = decisions.take(3, torch.device("cpu"))  # they are taken once
    assert again.flagged.tolist() == [True, True, True]
    assert again.answers.isnan().all()


def test_the_threshold_is_not_rounded():
    decisions, score = Decisions(), torch.tensor([0.3], dtype=torch.float32)  # 0.300000012
    decisions.put(score, 0.30000001)
    assert decisions.take(1, torch.device("cpu")).flagged.item()


def test_the_operator_may_let_requests_opt_out(case):
    _, flags = expect(case)
    flagged = [c for c, flag in zip(case.conversations, flags, strict=True) if flag][:4]
    with engine(case, lasa={"opt_out": True, "hide_condition": False}) as llm:
        on = ask(llm, flagged)
        off = ask(llm, flagged, extra_args={"lasa": "off"})
        with pytest.raises(VLLMValidationError, match="the one value"):
            ask(llm, flagged, extra_args={"lasa": "on"})
    condition = case.guard.policy.condition
    assert all(one.text.startswith(condition) for one in on)
    assert not any(one.text.startswith(condition) for one in off)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"additional_config": {}}, "no interpreter is configured"),
        ({"additional_config": {"lasa": {"interpreter": "x", "thresold": 1}}}, "lasa.thresold"),
        ({"additional_config": {"lasa": {"interpreter": "/nowhere"}}}, "nowhere"),
        ({"logits_processors": None}, "--logits-processors"),
        ({"scheduler_cls": None}, "--scheduler-cls"),
    ],
)
def test_an_engine_without_a_whole_guard_does_not_start(case, change, said):
    with pytest.raises(Exception, match=said), engine(case, **change):
        pass


@pytest.mark.parametrize("other", ["qwen3", "embedded"])
def test_an_interpreter_of_another_model_does_not_start(case, other, tiny, embedded):
    foreign = embedded if other == "embedded" else tiny(other)
    with (
        pytest.raises(Exception, match=r"trained on|does not exist"),
        engine(case, lasa={"interpreter": str(foreign.interpreter)}),
    ):
        pass
    if other == "qwen3":  # the same shapes and the same template: forced, it reads
        with engine(case, lasa={"interpreter": str(foreign.interpreter), "force": True}) as llm:
            ask(llm, case.conversations[:1])


def test_the_interpreter_is_kept_in_float32_when_the_model_is_not(case):
    with engine(case, dtype="bfloat16") as llm:
        kept = llm.apply_model(lambda model: {p.dtype for p in model._interpreter[0].parameters()})
    assert kept == [{torch.float32}]
