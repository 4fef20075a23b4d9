"""Answers that are read again: whatever comes together, the same are stopped as by lasa's own listener."""

import random
from types import SimpleNamespace

import pytest
import torch
from lasa_vllm.listening import AnswerStops, Listening
from test_processors import CONDITION, END, SLOTS, VOCABULARY, Request, V1Runner, V2Runner, simulated
from vllm import SamplingParams

from lasa.guard.listening import AnswerListener
from lasa.interpreter.heads import AnswerHead

MARK, WINDOW, LONGEST = 2, 3, 40
HEAD = AnswerHead(WINDOW, 0.7)
LISTENING = Listening(HEAD, MARK)
ENGINE = SimpleNamespace(
    scheduler_config=SimpleNamespace(max_num_seqs=SLOTS), model_config=SimpleNamespace(max_model_len=LONGEST)
)


def stopped_after(logits, *, ended):
    """After how many tokens lasa's own listener stops an answer, None if it does not."""
    listener = AnswerListener(HEAD)
    for number, logit in enumerate(logits, start=1):
        listener.hear(logit)
        if not listener.score(ended=ended and number == len(logits)) < HEAD.threshold:
            return number
    return None


class Spoken(Request):
    """A request of the simulation whose answer ends by itself, or at its limit, and is heard token by token."""

    def __init__(self, number, draw):
        super().__init__(number, draw)
        self.heard = [draw.choice([-3.0, 0.5, 3.0]) for _ in range(draw.randint(0, 9))]
        self.limit = draw.choice([1, 2, 3, 5, 12])
        self.prompt = self.prompt[-6:]
        self.params = SamplingParams(max_tokens=self.limit, extra_args=self.params.extra_args)
        self.params._eos_token_id = END

    @property
    def conditioned(self):
        return (self.flagged or not self.readable) and not self.off

    @property
    def own(self):
        written = len(self.written)
        if self.written[:1] == [5]:
            return 8 + written
        return 11 + written % 8 if written < len(self.heard) else END

    @property
    def expected(self):
        if self.conditioned:
            return [*CONDITION, 11, 12]
        whole = [11 + number % 8 for number in range(len(self.heard))]
        heard = self.heard[: self.limit]
        stop = None if self.off else stopped_after(heard, ended=True)
        if stop is not None:
            return [*whole[:stop], MARK]
        return [*whole, END][: self.limit]  # more than its limit is not asked for here

    @property
    def logit(self):
        """At its newest token."""
        return self.heard[len(self.written) - 1] if self.written and not self.conditioned else 9.0


@pytest.mark.parametrize("preempted", [0.0, 0.1])
@pytest.mark.parametrize("runner", [V1Runner, V2Runner])
@pytest.mark.parametrize("seed", range(20))
def test_the_same_answers_are_stopped_as_by_lasa_s_own_listener(monkeypatch, runner, seed, preempted):
    decisions, draw = simulated(monkeypatch, LISTENING), random.Random(seed)
    engine = runner(ENGINE, draw)
    waiting, running, finished, came_back = [Spoken(number, draw) for number in range(40)], [], [], set()
    while waiting or running:
        while waiting and len(running) < SLOTS:
            running.append(waiting.pop(0))
        batch = engine.arrange(draw.sample(running, draw.randint(1, len(running))))
        for one in batch:
            one.read = min(len(one.prompt + one.written), one.read + draw.randint(1, 4))
        at_end = [one.read == len(one.prompt) for one in batch]
        scores = [float(one.flagged) if end else draw.random() for one, end in zip(batch, at_end, strict=True)]
        newest = [one.read == len(one.prompt + one.written) for one in batch]
        heard = [one.logit if new else draw.choice([-9.0, 9.0]) for one, new in zip(batch, newest, strict=True)]
        decisions.put(torch.tensor(scores), 0.5, None, torch.tensor(heard))
        logits = torch.full((len(batch), VOCABULARY), -50.0)
        logits[:, MARK] = -1.0  # the model would like to write it
        for row, one in enumerate(batch):
            logits[row, one.own] = 0.0
        tokens = engine.apply(batch, logits).argmax(dim=-1).tolist()
        for one, token, new in zip(batch, tokens, newest, strict=True):
            if new:
                one.written.append(token)
        for one in [one for one in batch if len(one.written) == len(one.expected) or one.written[-1:] == [MARK]]:
            running.remove(one)
            engine.leave(one)
            finished.append(one)
        if running and draw.random() < preempted:  # it comes back with what it has written
            one = draw.choice(running)
            came_back.add(one.number)
            engine.leave(one)
            one.read = 0
    stayed = [one for one in finished if one.number not in came_back]
    assert [one.written for one in stayed] == [one.expected for one in stayed]
    stops = [one for one in finished if one.written[-1] == MARK]
    assert stops and len(stops) < len(finished)
    for one in finished:  # one that came back may be stopped by fewer tokens, and never later
        assert MARK not in one.written[:-1]
        assert len(one.written) <= len(one.expected) + (one.number in came_back)
        if one.expected[-1] == MARK:
            assert one.written[-1] == MARK


def test_a_score_that_is_missing_or_no_number_stops_every_answer(monkeypatch):
    for missing in (True, False):
        decisions, draw = simulated(monkeypatch, LISTENING), random.Random(0)
        for runner in (V1Runner, V2Runner):
            engine, one = runner(ENGINE, draw), Spoken(0, draw)
            one.flagged, one.off, one.readable, one.prompt = False, False, True, [1, 3, 4]
            one.heard, one.params = [-3.0] * 9, SamplingParams(max_tokens=12)
            for step in range(WINDOW + 1):
                engine.arrange([one])
                one.read = len(one.prompt + one.written)
                if step == 0 or not missing:
                    decisions.put(torch.tensor([0.0]), 0.5, None, torch.tensor([torch.nan]))
                logits = torch.full((1, VOCABULARY), -50.0)
                logits[0, one.own] = 0.0
                one.written.append(int(engine.apply([one], logits).argmax(dim=-1)))
            assert one.written == [11, 12, 13, MARK]


def test_an_answer_may_not_end_otherwise_than_its_request_lets_it():
    stops = AnswerStops(LISTENING, 2, torch.device("cpu"))
    params = SamplingParams(stop_token_ids=[12, 14])
    params._eos_token_id = END
    stops.enter(0, SamplingParams())
    stops.enter(1, params)
    logits = torch.zeros(2, VOCABULARY)
    logits[1, 14] = 4.0
    stops.mark_ends(logits, torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([True, True]))
    assert logits[1, MARK] == 4.0
    assert logits[1, [END, 12, 14]].isneginf().all()
    assert logits[0].isfinite().sum() == VOCABULARY - 1  # one that has no end goes on
