import json
import logging
import threading
import time
from itertools import pairwise

import pytest
import torch

from guards import build_guard, lively_model
from lasa.data.prompts import user_prompt
from lasa.models.generation import GenerationSettings
from lasa.serving import batch as batch_module
from lasa.serving.batch import RunningBatch
from lasa.serving.lanes import lane_of, tokens_held
from lasa.serving.metrics import Metrics
from lasa.serving.scheduler import FAILED, NO_MEMORY, QueueFullError, Scheduler
from lasa.serving.served import ServedAnswer
from lasa.serving.tickets import Ended, Failed, Ticket, Written

SETTINGS = GenerationSettings(max_new_tokens=3)
RUN = ({"role": "user", "content": "run"},)


@pytest.fixture(scope="module")
def guard(tokenizer):
    prompts = [user_prompt(str(number), "en", text) for number, text in enumerate(("paint", "run", "cook rice"))]
    return build_guard(lively_model("llama", tokenizer), tokenizer, prompts)


@pytest.fixture
def scheduler(guard):
    """Makes schedulers, and ends them."""
    made = []

    def make(**settings):
        made.append(Scheduler(guard, metrics=Metrics(), **settings))
        return made[-1]

    yield make
    for one in made:
        one.close(20)


@pytest.fixture(autouse=True)
def restless(monkeypatch):
    """Prompts are read at once, whoever writes."""
    monkeypatch.setattr("lasa.serving.scheduler.LONGEST_REST", 0.0)


@pytest.fixture
def held(monkeypatch):
    """A batch that makes no step before this is set."""
    free, step = threading.Event(), RunningBatch.step

    def wait_and_step(self):
        assert free.wait(20)
        return step(self)

    free.set()
    monkeypatch.setattr(RunningBatch, "step", wait_and_step)
    yield free
    free.set()


class Asked(Ticket):
    """A ticket that keeps its events."""

    def __init__(self, guard, rows=1, settings=SETTINGS, messages=RUN, answers=1, **rest):
        questions = [guard.question(messages) for _ in range(rows)]
        self.events, self.over_now = [], threading.Event()
        asked = [ServedAnswer(question, settings) for question in questions for _ in range(answers)]
        super().__init__(asked, self.take, **rest)

    def take(self, event):
        self.events.append(event)
        if isinstance(event, Failed) or sum(isinstance(one, Ended) for one in self.events) == len(self.rows):
            self.over_now.set()

    def answered(self):
        return self.over_now.wait(20) and not any(isinstance(event, Failed) for event in self.events)


def submitted(scheduler, guard, rows=1, settings=SETTINGS, **rest):
    ticket = Asked(guard, rows, settings, **rest)
    scheduler.submit(ticket)
    return ticket


def test_without_a_queue_there_is_room_for_what_can_run_at_once(scheduler, guard, held):
    one = scheduler(max_rows=2, max_queue=0)
    assert submitted(one, guard).answered()
    held.clear()
    tickets = [submitted(one, guard) for _ in range(2)]
    with pytest.raises(QueueFullError):
        one.submit(Asked(guard))
    held.set()
    assert all(ticket.answered() for ticket in tickets)
    assert submitted(one, guard).answered()


def test_a_request_larger_than_the_queue_is_taken_by_an_idle_server_only(scheduler, guard, held):
    one = scheduler(max_rows=1, max_queue=1)
    held.clear()
    first = submitted(one, guard)
    with pytest.raises(QueueFullError):
        one.submit(Asked(guard, rows=4))
    held.set()
    assert first.answered()
    for _ in range(200):
        if one.load == (0, 0) and not one._entering:
            break
        threading.Event().wait(0.01)
    assert submitted(one, guard, rows=4).answered()


def test_who_leaves_the_queue_makes_room_in_it(scheduler, guard, held):
    one = scheduler(max_rows=1, max_queue=2)
    held.clear()
    running, gone = submitted(one, guard), [submitted(one, guard) for _ in range(2)]
    with pytest.raises(QueueFullError):
        one.submit(Asked(guard))
    for ticket in gone:
        one.cancel(ticket)
    staying = [submitted(one, guard) for _ in range(2)]
    held.set()
    assert running.answered()
    assert all(ticket.answered() for ticket in staying)
    assert not any(ticket.events for ticket in gone)


def test_a_failure_is_told_to_all_whom_it_concerns_and_logged_once(scheduler, guard, monkeypatch, caplog):
    one = scheduler()
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "lasa.serving"):
        patch.setattr("lasa.serving.scheduler.Scheduler._drop_cancelled", lambda _: 1 / 0)
        failed = submitted(one, guard)
        assert not failed.answered()
    assert [str(event.error) for event in failed.events] == [FAILED]  # the caller is told no exception's text
    (logged,) = [json.loads(record.message) for record in caplog.records]
    assert (logged["event"], logged["error"]) == ("guard_failure", "division by zero")
    assert "_drop_cancelled" in "".join(logged["traceback"])
    assert submitted(one, guard).answered()
    assert one.failure is None


def test_a_close_with_nothing_left_is_no_failure(scheduler, guard):
    one = scheduler()
    assert submitted(one, guard).answered()
    one.close(20)
    assert one.failure is None
    assert one.metrics.failures._value.get() == 0


# memory


def test_rows_are_let_in_while_their_caches_fit(scheduler, guard, held, monkeypatch):
    need = Asked(guard).rows[0].tokens
    one, most = scheduler(max_tokens=2 * need), []
    step = RunningBatch.step

    def note_and_step(self):
        most.append(tokens_held(one._lanes.rows))
        return step(self)

    monkeypatch.setattr(RunningBatch, "step", note_and_step)
    tickets = [submitted(one, guard) for _ in range(5)]
    assert all(ticket.answered() for ticket in tickets)
    assert 0 < max(most) <= 2 * need
    larger = GenerationSettings(max_new_tokens=4 * need)  # than the budget: it is answered alone
    assert submitted(one, guard, settings=larger).answered()


def test_a_long_row_does_not_widen_the_short_ones(guard):
    short = Asked(guard, 63, GenerationSettings(max_new_tokens=1000)).rows
    long = Asked(guard, 1, GenerationSettings(max_new_tokens=9000)).rows
    assert lane_of(long[0]) > lane_of(short[0])
    assert tokens_held([*short, *long]) == 63 * short[0].tokens + long[0].tokens


def test_a_step_without_memory_ends_one_request(scheduler, guard, held, monkeypatch):
    one, forward, failed = scheduler(), RunningBatch._forward, []

    def full(self, ids, mask, cache):
        logits = forward(self, ids, mask, cache)
        if ids.shape == (3, 1) and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError
        return logits

    monkeypatch.setattr(RunningBatch, "_forward", full)
    held.clear()
    tickets = [submitted(one, guard), submitted(one, guard, settings=GenerationSettings(max_new_tokens=5))]
    tickets.append(submitted(one, guard))
    held.set()
    assert [ticket.answered() for ticket in tickets] == [True, False, True]
    assert [str(event.error) for event in tickets[1].events if isinstance(event, Failed)] == [NO_MEMORY]
    alone = guard.generate([({"role": "user", "content": "run"},)], SETTINGS)[0].answer
    assert [event.outcome.answer for event in tickets[2].events if isinstance(event, Ended)] == [alone]
    assert one.failure is None


def test_a_prefill_without_memory_is_tried_request_by_request(scheduler, guard, held, monkeypatch):
    one, forward = scheduler(), RunningBatch._forward

    def full(self, ids, mask, cache):
        if ids.shape[0] > 1 and ids.shape[1] > 1:
            raise torch.OutOfMemoryError
        return forward(self, ids, mask, cache)

    monkeypatch.setattr(RunningBatch, "_forward", full)
    held.clear()
    tickets = [submitted(one, guard) for _ in range(3)] + [submitted(one, guard, rows=2)]
    held.set()
    assert [ticket.answered() for ticket in tickets] == [True, True, True, False]
    assert one.failure is None


# reading beside writing


@pytest.fixture
def order(monkeypatch):
    """Steps of a batch, and passes over prompts, in their order."""
    happened, forward, to_layers = [], RunningBatch._forward, batch_module.forward_to_layers

    def note(self, ids, mask, cache):
        happened.append("step" if ids.shape[1] == 1 else "read")
        return forward(self, ids, mask, cache)

    def note_read(*given, **rest):
        happened.append("read")
        return to_layers(*given, **rest)

    monkeypatch.setattr(RunningBatch, "_forward", note)
    monkeypatch.setattr(batch_module, "forward_to_layers", note_read)
    return happened


def test_turns_are_scored_one_pass_at_a_time_while_others_write(scheduler, guard, order):
    one = scheduler()
    chat = [{"role": role, "content": "run"} for _ in range(12) for role in ("user", "assistant")][:-1]
    writing = submitted(one, guard, settings=GenerationSettings(max_new_tokens=60))
    while not writing.events:
        threading.Event().wait(0.005)
    order.clear()
    scored = submitted(one, guard, messages=chat, by_turn=True)
    assert scored.answered()
    assert writing.answered()
    assert [turn.message for turn in scored.events[0].turns] == list(range(0, 23, 2))
    reads = [place for place, kind in enumerate(order) if kind == "read"]
    assert len(reads) >= 13
    between = [later - earlier for earlier, later in pairwise(reads[:13])]
    assert min(between) > 1


def test_all_answers_to_a_question_wait_for_one_read(scheduler, guard, held, order):
    one = scheduler(max_rows=4)
    held.clear()
    running = submitted(one, guard, rows=2)
    while one.load[0] < 2:
        threading.Event().wait(0.005)
    order.clear()
    asked = submitted(one, guard, answers=3)
    held.set()
    assert all(ticket.answered() for ticket in (running, asked))
    assert order.count("read") == 1 + sum(row.running.conditioned for row in asked.rows[:1])
    larger = submitted(one, guard, answers=6)  # than the batch: in two parts
    assert larger.answered()


def test_after_a_pass_over_prompts_those_who_write_have_their_time(scheduler, guard, monkeypatch):
    monkeypatch.setattr("lasa.serving.scheduler.LONGEST_REST", 3.0)
    one, forward, passes = scheduler(), RunningBatch._forward, []

    def slow(self, ids, mask, cache):
        if ids.shape[1] > 1:
            passes.append(time.monotonic())
            time.sleep(0.05)
            passes.append(time.monotonic())
        else:
            time.sleep(0.002)
        return forward(self, ids, mask, cache)

    monkeypatch.setattr(RunningBatch, "_forward", slow)
    writing = submitted(one, guard, rows=4, settings=GenerationSettings(max_new_tokens=200))
    while not writing.events:
        threading.Event().wait(0.005)
    before = passes[-1]
    assert submitted(one, guard).answered()
    after = next(when for when in passes if when > before)
    assert after - before >= 3 * 0.05
    one.cancel(writing)


def test_chunks_of_many_streams_are_larger_and_who_does_not_stream_gets_the_end_alone(scheduler, guard, monkeypatch):
    one = scheduler()
    pieces = {}
    for rest, streamed in ((0.0, True), (60.0, True), (0.0, False)):
        monkeypatch.setattr("lasa.serving.scheduler.CHUNK_SECONDS", rest)
        monkeypatch.setattr("lasa.serving.scheduler.MOST_CHUNK_SECONDS", rest)
        ticket = submitted(one, guard, settings=GenerationSettings(max_new_tokens=30), streamed=streamed)
        assert ticket.answered()
        texts = [event.text for event in ticket.events if isinstance(event, Written | Ended)]
        pieces[rest, streamed] = len(texts), "".join(texts)
    assert len({text for _, text in pieces.values()}) == 1
    counts = [count for count, _ in pieces.values()]
    assert counts[0] > 3
    assert counts[1:] == [2, 1]
