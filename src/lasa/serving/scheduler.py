"""Continuous batching: one worker thread keeps a batch running while requests come, go and are cancelled.

Only the worker touches the model, so a read can never see another request's pass. Between two steps it drops what was
cancelled, makes at most one pass over prompts, and hands out what was written. A failure of the guard fails the
requests it concerned; nothing is ever answered without a read.
"""

import json
import logging
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence

import torch

from lasa.conditioning.decision import decide
from lasa.errors import DataError, GuardError
from lasa.guard.guard import Guard
from lasa.guard.turns import TurnDecision, turns_to_score
from lasa.models.generation import GenerationSettings
from lasa.models.rendering import render
from lasa.serving.admission import Admission
from lasa.serving.batch import PASS_TOKENS, RunningBatch
from lasa.serving.lanes import Lanes, tokens_held
from lasa.serving.metrics import Metrics
from lasa.serving.served import ServedAnswer
from lasa.serving.tickets import Decided, Failed, Ticket

logger = logging.getLogger("lasa.serving")

LONGEST_REST = 3.0
"""Passes over prompts rest for so many times as long as the last one took, or less where many wait and few write."""

CHUNK_SECONDS = 0.0015
MOST_CHUNK_SECONDS = 0.1
"""What a chunk of a stream may cost: with so many streams, one of them sends no sooner again, but for the last cap."""

DONE = object()

NO_MEMORY = "There is no memory for this request beside the others; try again, or ask for less."
FAILED = "The guard failed, so nothing is answered; the server's log says why."
STOPS = "The server stops, so nothing is answered."


class QueueFullError(Exception):
    """There is no room for more requests; try again after `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests; try again in {retry_after} s")
        self.retry_after = retry_after


class Scheduler:
    """Runs tickets on a guard in a worker thread.

    Args:
        guard: The guard.
        max_rows: Rows that are answered at the same time.
        max_tokens: Tokens that the KV caches of running rows may come to hold, padding counted; a row that needs more
            is answered alone.
        max_queue: Rows that may wait; one request that is larger is taken while nothing else runs or waits.
        pass_tokens: Tokens of one pass over prompts, padding counted; a longer prompt is read alone, in several.
        metrics: Where counts go.

    Raises:
        GuardError: The guard cannot run on this model in this way (tried out before anything is served).
    """

    def __init__(
        self,
        guard: Guard,
        *,
        max_rows: int = 64,
        max_tokens: int = 262_144,
        max_queue: int = 256,
        pass_tokens: int = PASS_TOKENS,
        metrics: Metrics,
    ) -> None:
        self.guard, self.max_rows, self.max_queue, self.pass_tokens = guard, max_rows, max_queue, pass_tokens
        self.metrics, self._admission = metrics, Admission(max_rows, max_tokens, pass_tokens)
        self.failure: str | None = None
        self._lanes = Lanes(guard)
        self._owners: dict[int, Ticket] = {}  # by the identity of a running row
        self._unscored: deque[Ticket] = deque()  # to be read at each turn before they wait
        self._waiting: deque[tuple[Ticket, ServedAnswer]] = deque()
        self._changed = threading.Condition()
        self._entering: Sequence[tuple[Ticket, ServedAnswer]] = ()  # have left the queue, are not in the batch yet
        self._reads: dict[str, Iterator[None]] = {}  # under way: "enter", and "score" of the first of the unscored
        self._rested = self._last_read = 0.0  # since when, and how long the last pass over prompts took
        self._closing = self._stopping = False
        self._seconds_per_row = 1.0
        _try_out(guard)
        self._thread = threading.Thread(target=self._work, name="lasa-batch", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """Rows that run, and rows that wait."""
        return len(self._lanes.rows), len(self._waiting) + sum(len(ticket.rows) for ticket in self._unscored)

    @property
    def closed(self) -> bool:
        """Whether no more tickets are taken."""
        return self._closing or not self._thread.is_alive()

    def submit(self, ticket: Ticket) -> None:
        """Queue all rows of a ticket, or none.

        Raises:
            QueueFullError: Too many rows wait.
            GuardError: The server is shutting down, or its worker has stopped.
        """
        with self._changed:
            if self.closed:
                raise GuardError("The server is shutting down.")
            running, waiting = self.load
            running += len(self._entering)
            room = self.max_queue + max(0, self.max_rows - running) - waiting
            if (running or waiting) and len(ticket.rows) > room:
                wait = self._seconds_per_row * waiting / self.max_rows
                raise QueueFullError(min(60, max(1, math.ceil(wait))))
            if ticket.by_turn:
                self._unscored.append(ticket)
            else:
                self._waiting.extend((ticket, row) for row in ticket.rows)
            self._changed.notify()

    def cancel(self, ticket: Ticket) -> None:
        """Stop a ticket; its places in the queue are free now, its slots before the next step."""
        with self._changed:
            ticket.cancelled = True
            self._waiting = deque(one for one in self._waiting if one[0] is not ticket)
            first = list(self._unscored)[:1]  # may be under way
            self._unscored = deque([*first, *(one for one in list(self._unscored)[1:] if one is not ticket)])
            self._changed.notify()

    def close(self, timeout: float | None = None) -> None:
        """Take no more tickets, finish those that run or wait for up to `timeout` seconds, and end the worker."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(10)

    @property
    def _busy(self) -> bool:
        return bool(self._waiting or self._unscored or self._reads or self._lanes.rows)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._busy or self._closing):
                    self._changed.wait()
                if self._stopping or (self._closing and not self._busy):
                    break
            try:
                self._drop_cancelled()
                self._read()
                ended = [row for batch in self._lanes.batches for row in self._step(batch)]
                self._hand_out(ended)
            except Exception as error:
                concerned = [*self._owners.values(), *(ticket for ticket, _ in self._entering)]
                self._fail(concerned or self._left(), error)
                self._lanes, self._owners, self._entering, self._reads = Lanes(self.guard), {}, (), {}
                with self._changed:
                    self._waiting = deque(one for one in self._waiting if not one[0].cancelled)
                    self._unscored = deque(one for one in self._unscored if not one.cancelled)
            running, waiting = self.load
            self.metrics.running.set(running)
            self.metrics.waiting.set(waiting)
        for ticket in {id(one): one for one in self._left()}.values():
            ticket.deliver(Failed(GuardError(STOPS)))

    def _left(self) -> list[Ticket]:
        queued = [ticket for ticket, _ in (*self._entering, *self._waiting)]
        return [*self._owners.values(), *queued, *self._unscored]

    def _read(self) -> None:
        """One pass over prompts, where it is due: of those who enter, or of a conversation that is scored by turn.

        While others write it rests after a pass, so that these wait for a bounded share of the time; the less the more
        wait to be read. Where both kinds are under way they take turns.
        """
        writing, wanting = len(self._lanes.rows), len(self._waiting) + len(self._entering) + len(self._unscored)
        rest = self._last_read * min(LONGEST_REST, writing / max(1, wanting))
        started = time.monotonic()
        if started < self._rested + rest:
            return
        if not self._entering:
            with self._changed:
                self._entering = self._admission.take(self._waiting, self._lanes.rows)
            if self._entering:
                self._reads["enter"] = self._join(self._entering)
                next(self._reads["enter"], None)
        if self._unscored and "score" not in self._reads:
            self._reads["score"] = self._score_turns(self._unscored[0])
            next(self._reads["score"], None)
        if not self._reads:
            return
        kind = next(iter(self._reads))
        reading = self._reads.pop(kind)
        if next(reading, DONE) is not DONE:
            self._reads[kind] = reading  # behind the other
        elif kind == "enter":
            self._entering = ()
        self._rested = time.monotonic()
        self._last_read = self._rested - started

    def _drop_cancelled(self) -> None:
        gone = [row for row in self._lanes.rows if self._owners[id(row)].over]
        for row in gone:
            del self._owners[id(row)]
            self.metrics.cancelled.inc()
        self._lanes.drop(gone)

    def _step(self, batch: RunningBatch) -> list[ServedAnswer]:
        """A step; where memory does not suffice for it, the request of the longest row is given up for the others."""
        try:
            return batch.step()
        except torch.OutOfMemoryError:
            longest = max(batch.rows, key=lambda row: row.tokens)
            self._give_up(self._owners[id(longest)])
            return []

    def _give_up(self, ticket: Ticket) -> None:
        logger.error(json.dumps({"event": "out_of_memory", "tokens": tokens_held(ticket.rows)}))
        ticket.cancelled = True
        ticket.deliver(Failed(GuardError(NO_MEMORY)))

    def _join(self, new: Sequence[tuple[Ticket, ServedAnswer]]) -> Iterator[None]:
        """Read rows and let them join, with a pause before every pass."""
        started = time.monotonic()
        try:
            yield from self._lanes.joining([row for _, row in new], self.pass_tokens)
        except torch.OutOfMemoryError:
            tickets = list({id(ticket): ticket for ticket, _ in new}.values())
            if len(tickets) == 1:
                self._give_up(tickets[0])
                return
            for ticket in tickets:
                yield from self._join([one for one in new if one[0] is ticket])
            return
        except Exception as error:
            self._fail([ticket for ticket, _ in new], error)
            return
        self.failure = None
        for ticket, row in new:
            decision = row.running.decision
            self.metrics.decisions.labels(decision.band, decision.action).inc()
            self.metrics.tokens.labels("prompt").inc(len(row.question.rendered.token_ids))
            self.metrics.waited.observe(started - ticket.submitted)
            ticket.deliver(Decided(ticket.rows.index(row), decision, ticket.turns))
            if row.ended:
                self._finish(ticket, row)
            else:
                self._owners[id(row)] = ticket

    def _score_turns(self, ticket: Ticket) -> Iterator[None]:
        """Read a conversation at each of its turns, then let it wait; one that cannot be read is told so."""
        messages, found = ticket.rows[0].question.messages, list[TurnDecision]()
        try:
            languages = self.guard.languages(messages)
            for place in turns_to_score(messages):
                if ticket.over:
                    break
                prompt = render(self.guard.tokenizer, messages[: place + 1])
                read = yield from RunningBatch(self.guard).reading(prompt, self.pass_tokens)
                config, policy = self.guard.interpreter.config, self.guard.policy
                found.append(TurnDecision(place, decide(config, policy, read.score, languages, read.categories)))
        except torch.OutOfMemoryError:
            self._give_up(ticket)
        except DataError as error:
            ticket.cancelled = True
            ticket.deliver(Failed(error))
        except Exception as error:
            self._fail([ticket], error)
        ticket.turns = found
        with self._changed:
            self._unscored.popleft()
            self._waiting.extend((ticket, row) for row in ticket.rows if not ticket.over)

    def _hand_out(self, ended: Sequence[ServedAnswer]) -> None:
        rows = self._lanes.rows
        rest = min(MOST_CHUNK_SECONDS, CHUNK_SECONDS * len(rows))
        for row in rows:
            self._owners[id(row)].hand_out(row, rest)
        for row in ended:
            self._finish(self._owners.pop(id(row)), row)

    def _finish(self, ticket: Ticket, row: ServedAnswer) -> None:
        ticket.hand_out(row)
        self._seconds_per_row = 0.9 * self._seconds_per_row + 0.1 * (time.monotonic() - ticket.submitted)
        self.metrics.tokens.labels("completion").inc(len(row.running.state.token_ids))
        if row.running.stopped:
            self.metrics.stopped.inc()

    def _fail(self, tickets: Sequence[Ticket], error: Exception) -> None:
        """These tickets are told that it failed, not how; whatever they have elsewhere in the batch is dropped."""
        self.failure = str(error) or type(error).__name__
        self.metrics.failures.inc()
        where = traceback.format_tb(error.__traceback__)
        logger.error(json.dumps({"event": "guard_failure", "error": self.failure, "traceback": where}))
        for ticket in {id(one): one for one in tickets}.values():
            ticket.cancelled = True
            ticket.deliver(Failed(GuardError(FAILED)))


def _try_out(guard: Guard) -> None:
    """Answer two short questions that join one after the other, so that a model that cannot be batched is found now."""
    try:
        batch = RunningBatch(guard)
        for text in ("hello", "hello there"):
            batch.join(
                [
                    ServedAnswer(
                        guard.question(({"role": "user", "content": text},)), GenerationSettings(max_new_tokens=2)
                    )
                ]
            )
            batch.step()
    except Exception as error:
        raise GuardError(f"The guard cannot run on {type(guard.model).__name__}: {error}") from error
