"""Answers that are read again: no token is shown before every window that it is in was read."""

from types import SimpleNamespace

import pytest
from lasa_vllm import scheduler
from lasa_vllm.listening import answer_limit
from test_processors import CONDITION, END
from test_scheduler import Plain
from test_stopping import LISTENING, MARK
from vllm import SamplingParams
from vllm.v1.request import Request as EngineRequest


class Read(scheduler._AnswersRead, Plain):
    """The scheduler's part, over as much of vLLM's as handles new tokens."""

    structured_output_manager = SimpleNamespace(accept_tokens=lambda request, tokens: True)


@pytest.fixture
def stream(monkeypatch):
    """What the caller has after each token that is written, and how the answer ends."""

    def stream(written, limit, *, prompt=(1, 2), eos=END, **asked):
        facts = SimpleNamespace(condition=CONDITION, listening=LISTENING)
        monkeypatch.setattr(scheduler, "prompting", lambda config: facts)
        monkeypatch.setattr(scheduler, "read_settings", lambda c: SimpleNamespace(hide_condition=True, opt_out=True))
        params = SamplingParams(max_tokens=limit, **asked)
        params._eos_token_id = eos
        request = EngineRequest("one", list(prompt), params, None)
        tested = Read(vllm_config=None)
        tested.add_request(request)
        got, shown = [], []
        for token in written:
            new, stopped = tested._update_request_with_output(request, [token])
            got += new
            shown.append(list(got))
            if stopped:
                return shown, str(request.get_finished_reason()), request.stop_reason
        return shown, None, None

    return stream


def test_nothing_is_shown_before_every_window_that_it_is_in_was_read(stream):
    own = list(range(11, 18))
    shown, reason, _ = stream([*own, END], 9)
    assert shown == [[], [], [], *(own[:n] for n in range(1, 5)), [*own, END]]
    assert reason == "stop"


def test_what_is_stopped_shows_no_more(stream):
    shown, reason, why = stream([11, 12, 13, 14, 15, MARK, 16], 9)
    assert shown == [[], [], [], [11], [11, 12], [11, 12]]
    assert (reason, why) == ("stop", "content_filter")
    assert stream([MARK], 9) == ([[]], "stop", "content_filter")
    assert stream([5, MARK], 1) == ([[], []], "stop", "content_filter")


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_an_answer_ends_at_its_limit_once_its_last_token_was_read(stream, limit):
    shown, reason, _ = stream(range(11, 20), limit)
    assert (shown[-1], reason) == (list(range(11, 11 + limit)), "length")
    assert len(shown) == limit + 1


def test_the_last_token_of_the_model_s_context_is_not_shown_as_it_was_not_read(stream):
    shown, reason, _ = stream(range(3, 40), 100, prompt=range(1, 11), eos=99)
    assert (shown[-1], reason) == (list(range(3, 12)), "length")
    assert answer_limit(100, 10, Plain.max_model_len) == 9


def test_a_conditioned_answer_is_left_alone(stream):
    shown, reason, _ = stream([*CONDITION, 11, 12, 13], 2)
    assert (shown, reason) == ([[], [], [], [11], [11, 12]], "length")


def test_a_request_that_is_not_guarded_is_not_held_back(stream):
    assert stream([11, 12], 2, extra_args={"lasa": "off"})[0][-1] == [11, 12]


def test_a_grammar_takes_tokens_when_they_are_written(stream, monkeypatch):
    """Where vLLM asks it once more, when they are let go, it has them already."""
    taken = []

    class Manager:
        def accept_tokens(self, request, tokens):
            taken.extend(tokens)
            return tokens != [15]

    taking, update = Manager(), Read._update_request_with_output

    def as_vllm_does(self, request, new_token_ids, **rest):
        new, stopped = update(self, request, new_token_ids, **rest)
        assert not new or taking.accept_tokens(request, new)
        return new, stopped

    monkeypatch.setattr(Read, "structured_output_manager", taking)
    monkeypatch.setattr(Read, "_follow_grammar", lambda self, request, new_token_ids: None)
    monkeypatch.setattr(Read, "_update_request_with_output", as_vllm_does)
    monkeypatch.setattr(EngineRequest, "use_structured_output", property(lambda self: True))
    assert stream([11, 12, 13, 14, END], 9)[0][-1] == [11, 12, 13, 14, END]
    assert taken == [11, 12, 13, 14, END]
    assert stream([11, 15], 9)[1] == "error"
