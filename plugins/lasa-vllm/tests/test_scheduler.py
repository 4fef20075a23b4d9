"""The condition does not count against the caller's limit and is not in the answer; nothing else changes."""

from types import SimpleNamespace

import pytest
from lasa_vllm import scheduler
from vllm import SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

CONDITION = [5, 6, 7]
END = 9


class Plain:
    """As much of vLLM's scheduler as handles new tokens."""

    max_model_len = 20
    _update_request_with_output = Scheduler._update_request_with_output

    def __init__(self, vllm_config):
        self.requests = {}

    def add_request(self, request):
        self.requests[request.request_id] = request


class Guarded(scheduler._AnswersRead, Plain):
    pass


@pytest.fixture
def answer(monkeypatch):
    """What the caller gets of the tokens that a model writes, and why it ends."""

    def answer(written, limit, *, hide=True, prompt=(1, 2), guarded=True):
        facts = SimpleNamespace(condition=CONDITION, listening=None)
        settings = SimpleNamespace(hide_condition=hide, opt_out=True)
        monkeypatch.setattr(scheduler, "prompting", lambda config: facts)
        monkeypatch.setattr(scheduler, "read_settings", lambda config: settings)
        params = SamplingParams(max_tokens=limit)
        params._eos_token_id = END
        request = Request("one", list(prompt), params, None)
        tested = (Guarded if guarded else Plain)(vllm_config=None)
        tested.add_request(request)
        emitted = []
        for token in written:
            new, stopped = tested._update_request_with_output(request, [token])
            emitted += new
            if stopped:
                break
        if guarded and (stopped or len(written) >= len(CONDITION)):
            assert request not in tested.own_limit
        return emitted, str(request.get_finished_reason())

    return answer


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 9])
def test_a_conditioned_answer_has_its_whole_length(answer, limit):
    own = [11, 12, 13, 14]
    assert answer([*CONDITION, *own, END], limit) == answer([*own, END], limit, guarded=False)


@pytest.mark.parametrize("limit", range(1, 7))
@pytest.mark.parametrize(
    "own", [[11, 12, END], [5, 11, 12, END], [5, 6, 11, 12, END], [5, 6, END], [END], [11, 5, 6, 7, END]], ids=str
)
def test_an_answer_that_was_not_conditioned_is_what_it_would_be(answer, own, limit):
    assert answer(own, limit) == answer(own, limit, guarded=False)


def test_the_condition_can_be_shown_and_still_does_not_count(answer):
    assert answer([*CONDITION, 11, 12, 13], 2, hide=False) == ([*CONDITION, 11, 12], "length")


def test_the_model_s_context_ends_an_answer_whatever_it_holds(answer):
    assert answer([*CONDITION, *range(11, 40)], 100, prompt=range(1, 11)) == (list(range(11, 18)), "length")


def test_many_tokens_at_once(answer, monkeypatch):
    own = [5, 6, 11, 12]
    monkeypatch.setattr(Plain, "max_model_len", 100)
    assert answer(own, 3)[0] == [5, 6, 11]
