"""Continuous batching: one worker thread keeps a batch running while requests come, go and are cancelled.

Only the worker touches the model, so a read can never see another request's pass. Between two steps it drops what was
cancelled, admits what fits, and hands out what was written. A failure of the guard fails the requests it concerned;
nothing is ever answered without a read.
"""

import json
import logging
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence

from lasa.errors import DataError, GuardError
from lasa.guard.guard import Guard
from lasa.guard.turns import TurnDecision
from lasa.models.generation import GenerationSettings
from lasa.serving.batch import RunningBatch, ServedAnswer
from lasa.serving.metrics import Metrics
from lasa.serving.tickets import Decided, Failed, Ticket

logger = logging.getLogger("lasa.serving")


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
        max_queue: Rows that may wait; one request that is larger is taken while nothing else runs or waits.
        prefill_tokens: Tokens of one prefill, padding counted; a longer prompt is prefilled alone.
        metrics: Where counts go.

    Raises:
        GuardError: The guard cannot run on this model in this way (tried out before anything is served).
    """

    def __init__(
        self, guard: Guard, *, max_rows: int = 64, max_queue: int = 256, prefill_tokens: int = 8192, metrics: Metrics
    ) -> None:
        self.guard, self.max_rows, self.max_queue, self.prefill_tokens = guard, max_rows, max_queue, prefill_tokens
        self.metrics = metrics
        self.failure: str | None = None
        self._batch = RunningBatch(guard)
        self._owners: dict[int, Ticket] = {}  # by the identity of a running row
        self._waiting: deque[tuple[Ticket, ServedAnswer]] = deque()
        self._changed = threading.Condition()
        self._entering = 0  # rows that have left the queue and are not in the batch yet
        self._closing = self._stopping = False
        self._seconds_per_row = 1.0
        _try_out(guard)
        self._thread = threading.Thread(target=self._work, name="lasa-batch", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """Rows that run, and rows that wait."""
        return len(self._batch.rows), len(self._waiting)

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
            running, waiting = len(self._batch.rows) + self._entering, len(self._waiting)
            room = self.max_queue + max(0, self.max_rows - running) - waiting
            if (running or waiting) and len(ticket.rows) > room:
                wait = self._seconds_per_row * len(self._waiting) / self.max_rows
                raise QueueFullError(min(60, max(1, math.ceil(wait))))
            self._waiting.extend((ticket, row) for row in ticket.rows)
            self._changed.notify()

    def cancel(self, ticket: Ticket) -> None:
        """Stop a ticket; its places in the queue are free now, its slots before the next step."""
        with self._changed:
            ticket.cancelled = True
            self._waiting = deque(one for one in self._waiting if one[0] is not ticket)
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

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._batch.rows or self._closing):
                    self._changed.wait()
                if self._stopping or (self._closing and not self._waiting and not self._batch.rows):
                    break
                new = self._admit()
            try:
                self._drop_cancelled()
                if new:
                    self._join(new)
                ended = self._batch.step()
                self._hand_out(ended)
            except Exception as error:
                self._fail([*self._owners.values(), *(ticket for ticket, _ in new)], error)
                self._batch, self._owners = RunningBatch(self.guard), {}
            self._entering = 0
            running, waiting = self.load
            self.metrics.running.set(running)
            self.metrics.waiting.set(waiting)
        if left := [*self._owners.values(), *(ticket for ticket, _ in self._waiting)]:
            self._fail(left, GuardError("The server stops."))

    def _admit(self) -> list[tuple[Ticket, ServedAnswer]]:
        """Take from the queue what fits into the batch and one prefill."""
        admitted: list[tuple[Ticket, ServedAnswer]] = []
        width = 0
        while self._waiting and len(self._batch.rows) + len(admitted) < self.max_rows:
            ticket, row = self._waiting[0]
            if not ticket.over:
                width = max(width, len(row.question.rendered.token_ids))
                if admitted and width * (len(admitted) + 1) > self.prefill_tokens:
                    break
                admitted.append((ticket, row))
            self._waiting.popleft()
        self._entering = len(admitted)
        return admitted

    def _drop_cancelled(self) -> None:
        gone = [row for row in self._batch.rows if self._owners[id(row)].over]
        for row in gone:
            del self._owners[id(row)]
            self.metrics.cancelled.inc()
        self._batch.drop(gone)

    def _join(self, new: Sequence[tuple[Ticket, ServedAnswer]]) -> None:
        started = time.monotonic()
        try:
            turns = self._score_turns(new)
            new = [one for one in new if not one[0].cancelled]
            self._batch.join([row for _, row in new])
        except Exception as error:
            self._fail([ticket for ticket, _ in new], error)
            return
        if new:
            self.failure = None
        for ticket, row in new:
            decision = row.running.decision
            self.metrics.decisions.labels(decision.band, decision.action).inc()
            self.metrics.tokens.labels("prompt").inc(len(row.question.rendered.token_ids))
            self.metrics.waited.observe(started - ticket.submitted)
            ticket.deliver(Decided(ticket.rows.index(row), decision, turns.get(id(ticket), ())))
            if row.ended:
                self._finish(ticket, row)
            else:
                self._owners[id(row)] = ticket

    def _score_turns(self, new: Sequence[tuple[Ticket, ServedAnswer]]) -> dict[int, Sequence[TurnDecision]]:
        """The turns of the tickets that want them; a ticket whose turns cannot be read is told so, and cancelled."""
        turns: dict[int, Sequence[TurnDecision]] = {}
        for ticket in {id(ticket): ticket for ticket, _ in new if ticket.by_turn}.values():
            try:
                turns[id(ticket)] = self.guard.score_turns(ticket.rows[0].question.messages)
            except DataError as error:
                ticket.cancelled = True
                ticket.deliver(Failed(error))
        return turns

    def _hand_out(self, ended: Sequence[ServedAnswer]) -> None:
        for row in self._batch.rows:
            self._owners[id(row)].hand_out(row)
        for row in ended:
            self._finish(self._owners.pop(id(row)), row)

    def _finish(self, ticket: Ticket, row: ServedAnswer) -> None:
        ticket.hand_out(row)
        self._seconds_per_row = 0.9 * self._seconds_per_row + 0.1 * (time.monotonic() - ticket.submitted)
        self.metrics.tokens.labels("completion").inc(len(row.running.state.token_ids))
        if row.running.stopped:
            self.metrics.stopped.inc()

    def _fail(self, tickets: Sequence[Ticket], error: Exception) -> None:
        """Nothing more is said to these tickets; whatever they have elsewhere in the batch is dropped."""
        self.failure = str(error) or type(error).__name__
        self.metrics.failures.inc()
        where = traceback.format_tb(error.__traceback__)
        logger.error(json.dumps({"event": "guard_failure", "error": self.failure, "traceback": where}))
        reason = error if isinstance(error, GuardError) else GuardError(f"The guard failed: {self.failure}")
        for ticket in {id(one): one for one in tickets}.values():
            ticket.cancelled = True
            ticket.deliver(Failed(reason))


def _try_out(guard: Guard) -> None:
    """Answer two short questions that join one after the other, so that a model that cannot be batched is found now."""
    batch = RunningBatch(guard)
    try:
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
