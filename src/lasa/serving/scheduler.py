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

import torch

from lasa.errors import DataError, GuardError
from lasa.guard.guard import Guard
from lasa.guard.turns import TurnDecision
from lasa.models.generation import GenerationSettings
from lasa.serving.batch import RunningBatch, ServedAnswer
from lasa.serving.lanes import Lanes, lane_of, tokens_held
from lasa.serving.metrics import Metrics
from lasa.serving.tickets import Decided, Failed, Ticket

logger = logging.getLogger("lasa.serving")

NO_MEMORY = "There is no memory for this request beside the others; try again, or ask for less."
FAILED = "The guard failed, so nothing is answered; the server's log says why."


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
        prefill_tokens: Tokens of one prefill, padding counted; a longer prompt is prefilled alone.
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
        prefill_tokens: int = 8192,
        metrics: Metrics,
    ) -> None:
        self.guard, self.max_rows, self.max_queue, self.prefill_tokens = guard, max_rows, max_queue, prefill_tokens
        self.max_tokens, self.metrics = max_tokens, metrics
        self.failure: str | None = None
        self._lanes = Lanes(guard)
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
        return len(self._lanes.rows), len(self._waiting)

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
            running, waiting = len(self._lanes.rows) + self._entering, len(self._waiting)
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
                while not (self._waiting or self._lanes.rows or self._closing):
                    self._changed.wait()
                if self._stopping or (self._closing and not self._waiting and not self._lanes.rows):
                    break
                new = self._admit()
            try:
                self._drop_cancelled()
                if new:
                    self._join(new)
                ended = [row for batch in self._lanes.batches for row in self._step(batch)]
                self._hand_out(ended)
            except Exception as error:
                self._fail([*self._owners.values(), *(ticket for ticket, _ in new)], error)
                self._lanes, self._owners, self._entering = Lanes(self.guard), {}, 0
            running, waiting = self.load
            self.metrics.running.set(running)
            self.metrics.waiting.set(waiting)
        if left := [*self._owners.values(), *(ticket for ticket, _ in self._waiting)]:
            self._fail(left, GuardError("The server stops."))

    def _admit(self) -> list[tuple[Ticket, ServedAnswer]]:
        """Take from the queue what fits beside what runs, and into one prefill of one lane."""
        admitted: list[tuple[Ticket, ServedAnswer]] = []
        width, rows = 0, self._lanes.rows
        while self._waiting and len(rows) < self.max_rows:
            ticket, row = self._waiting[0]
            if not ticket.over:
                if rows and tokens_held([*rows, row]) > self.max_tokens:
                    break
                width = max(width, len(row.question.rendered.token_ids))
                too_wide = width * (len(admitted) + 1) > self.prefill_tokens
                if admitted and (too_wide or lane_of(row) != lane_of(admitted[0][1])):
                    break
                admitted.append((ticket, row))
                rows.append(row)
            self._waiting.popleft()
        self._entering = len(admitted)
        return admitted

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

    def _join(self, new: Sequence[tuple[Ticket, ServedAnswer]]) -> None:
        started = time.monotonic()
        try:
            turns = self._score_turns(new)
            new = [one for one in new if not one[0].cancelled]
            if new:
                self._lanes.join([row for _, row in new])
        except torch.OutOfMemoryError:
            tickets = list({id(ticket): ticket for ticket, _ in new}.values())
            if len(tickets) == 1:
                self._give_up(tickets[0])
                return
            for ticket in tickets:
                self._join([one for one in new if one[0] is ticket])
            return
        except Exception as error:
            self._fail([ticket for ticket, _ in new], error)
            return
        finally:
            self._entering = 0  # they are among the running rows now, or gone
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
        for row in self._lanes.rows:
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
        reason = error if isinstance(error, GuardError) else GuardError(FAILED)
        for ticket in {id(one): one for one in tickets}.values():
            ticket.cancelled = True
            ticket.deliver(Failed(reason))


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
