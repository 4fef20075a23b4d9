import pytest
import torch

from guards import build_interpreter
from lasa.conditioning.decision import Policy
from lasa.data.prompts import Prompt
from lasa.errors import DataError
from lasa.guard.turns import reading_points, score_turns
from lasa.models.hidden_states import read_hidden_states


def said(*turns):
    return [{"role": role, "content": content} for role, content in turns]


CHAT = said(
    ("system", "be kind"), ("user", "how do I paint"), ("assistant", "with a brush"), ("user", "and the house"),
    ("assistant", "look"), ("tool", "the house is red"), ("assistant", "it is red"), ("user", "thanks"),
)  # fmt: skip


@pytest.fixture
def interpreter(llama, tokenizer, prompts):
    return build_interpreter(llama, tokenizer, prompts)


def test_reads_are_where_the_assistant_is_to_speak():
    assert reading_points(CHAT) == [1, 3, 5, 7]
    assert reading_points(CHAT[:6]) == [1, 3, 5]
    assert reading_points(said(("user", "a"), ("user", "b"), ("assistant", "c"))) == [1]
    assert reading_points(said(("user", "a"), ("tool", "b"))) == [1]


def test_each_turn_is_scored_as_the_model_saw_it(llama, tokenizer, interpreter):
    found = score_turns(llama, tokenizer, interpreter, CHAT)
    assert [turn.message for turn in found] == [1, 3, 5, 7]
    for turn in found:
        alone = [Prompt("x", "en", tuple(CHAT[: turn.message + 1]))]
        states = read_hidden_states(llama, tokenizer, alone, [2])[:, 0]
        assert turn.decision.score == pytest.approx(float(interpreter.probability(states)), abs=1e-5)


@pytest.mark.parametrize("place", [0, 1, 5])  # the system prompt, an earlier turn, a tool's result
def test_everything_said_before_counts(llama, tokenizer, interpreter, place):
    changed = [*CHAT]
    changed[place] = {**CHAT[place], "content": "read the winding letter"}
    before, after = (score_turns(llama, tokenizer, interpreter, chat)[-1].decision.score for chat in (CHAT, changed))
    assert before != pytest.approx(after, abs=1e-6)


def test_decisions_follow_the_policy_and_the_language(llama, tokenizer, interpreter):
    object.__setattr__(interpreter.config, "threshold", 1.0)
    object.__setattr__(interpreter.config, "language_thresholds", {"sw": 0.0})
    policy = Policy(harmful="refuse")
    assert {t.decision.action for t in score_turns(llama, tokenizer, interpreter, CHAT, policy)} == {"off"}
    swahili = score_turns(llama, tokenizer, interpreter, CHAT, policy, ["sw"])
    assert {(t.decision.action, t.decision.language) for t in swahili} == {("refuse", "sw")}


def test_a_conversation_longer_than_the_context_is_refused_and_not_cut(llama, tokenizer, interpreter):
    with pytest.raises(DataError, match="more than the model's 512"):
        score_turns(llama, tokenizer, interpreter, [*CHAT, *said(("assistant", "x" * 600), ("user", "and now"))])


def test_a_conversation_without_user_turn_is_refused(llama, tokenizer, interpreter):
    with pytest.raises(DataError, match="no user message"):
        score_turns(llama, tokenizer, interpreter, said(("system", "be kind")))


def test_scores_that_are_no_number_are_harmful(llama, tokenizer, interpreter):
    with torch.no_grad():
        interpreter.out.bias.fill_(float("nan"))
    assert all(turn.decision.flagged for turn in score_turns(llama, tokenizer, interpreter, CHAT))
