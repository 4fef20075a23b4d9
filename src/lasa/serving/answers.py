"""From the scheduler's events to an answer, in whatever form it is sent."""

import asyncio
import json
import math
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from lasa.conditioning.decision import Decision
from lasa.data.harm import HAZARDS
from lasa.errors import GuardError
from lasa.guard.row import GuardedAnswer
from lasa.guard.turns import TurnDecision
from lasa.serving.schema import DecisionRecord, ModerationResult, TurnRecord, Usage
from lasa.serving.served import TokenLogprob
from lasa.serving.tickets import Decided, Ended, Event, Failed, Ticket


def record(decision: Decision, turns: Sequence[TurnDecision] = ()) -> DecisionRecord:
    """A decision as JSON, with those at every turn where they are known."""
    by_turn = [TurnRecord(message=t.message, score=_finite(t.decision.score), band=t.decision.band) for t in turns]
    kinds = {name: _finite(value) for name, value in decision.categories.items()}
    hazards = list(HAZARDS.get(decision.category or "", ()))
    facts = {**asdict(decision), "score": _finite(decision.score), "categories": kinds, "hazards": hazards}
    return DecisionRecord(**facts, turns=by_turn or None)


def moderated(decision: Decision) -> ModerationResult:
    """A decision as the moderation endpoint gives it.

    The score of a kind of harm is the probability that the text is harmful and of that kind. A kind is true where the
    text is flagged and that kind is named.
    """
    shown = record(decision)
    scores = {"harmful": shown.score}
    for name, given in shown.categories.items():
        scores[name] = None if given is None or shown.score is None else shown.score * given
    flags = {name: decision.flagged and decision.category == name for name in shown.categories}
    return ModerationResult(
        flagged=decision.flagged,
        categories={"harmful": decision.flagged, **flags},
        category_scores=scores,
        category_applied_input_types={name: ["text"] for name in scores},
        lasa=shown,
    )


def _finite(value: float) -> float | None:
    """A number as JSON has it: what is none becomes null."""
    return value if math.isfinite(value) else None


class Deliveries:
    """Brings events out of the worker thread; the event loop is woken once for all that have come by then."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._come: deque[tuple[asyncio.Queue[Event], Event]] = deque()
        self._called = False

    def queue(self) -> tuple[asyncio.Queue[Event], Callable[[Event], None]]:
        """A queue of the running loop, and what puts an event into it from any thread."""
        self._loop = asyncio.get_running_loop()
        queue = asyncio.Queue[Event]()
        return queue, lambda event: self._put(queue, event)

    def _put(self, queue: asyncio.Queue[Event], event: Event) -> None:
        self._come.append((queue, event))
        if self._called or self._loop is None:
            return
        self._called = True
        try:
            self._loop.call_soon_threadsafe(self._hand_over)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self._called = False

    def _hand_over(self) -> None:
        self._called = False
        while self._come:
            queue, event = self._come.popleft()
            queue.put_nowait(event)


class Answering:
    """One request on its way to an answer.

    Args:
        ticket: Its rows.
        arriving: Where the scheduler's events about them arrive.
        tokenizer: For the texts of tokens.
        model: Name of the model.
        explain: Whether the decision record was asked for.
    """

    def __init__(
        self, ticket: Ticket, arriving: asyncio.Queue[Event], tokenizer: Any, model: str, explain: bool
    ) -> None:
        self.id, self.created = secrets.token_hex(12), int(time.time())
        self.ticket, self.arriving = ticket, arriving
        self.tokenizer, self.model, self.explain = tokenizer, model, explain
        self.decision: Decision | None = None
        self.turns: Sequence[TurnDecision] = ()
        self.texts = [""] * len(ticket.rows)
        self.ended: dict[int, Ended] = {}
        self.logprobs: list[list[TokenLogprob]] = [[] for _ in ticket.rows]

    @property
    def over(self) -> bool:
        """Whether all rows have ended."""
        return len(self.ended) == len(self.ticket.rows)

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        asked = {id(row.question): len(row.question.rendered.token_ids) for row in self.ticket.rows}
        prompt = sum(asked.values())
        completion = sum(len(one.outcome.answer.token_ids) for one in self.ended.values())
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)

    @property
    def explanation(self) -> DecisionRecord | None:
        """The decision record, where it was asked for and there is one."""
        return record(self.decision, self.turns) if self.decision and self.explain else None

    async def next(self) -> Event:
        """The next event, taken note of.

        Raises:
            GuardError: The guard could not do its work.
            DataError: The conversation cannot be read at one of its turns.
            TimeoutError: The deadline has passed.
        """
        async with asyncio.timeout(max(0.0, self.ticket.deadline - time.monotonic())):
            event = await self.arriving.get()
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Decided):
            self.decision, self.turns = self.decision or event.decision, self.turns or event.turns
        else:
            self.texts[event.row] += event.text
            self.logprobs[event.row] += event.logprobs
        if isinstance(event, Ended):
            self.ended[event.row] = event
        return event

    async def events(self) -> AsyncIterator[Event]:
        """What comes until all rows have ended."""
        while not self.over:
            yield await self.next()

    async def outcomes(self) -> list[GuardedAnswer]:
        """The answers of all rows, once all have ended."""
        async for _ in self.events():
            pass
        return [one.outcome for _, one in sorted(self.ended.items())]


def sse(data: str, event: str = "") -> bytes:
    """A server-sent event whose data is one line."""
    return f"event: {event}\r\ndata: {data}\r\n\r\n".encode() if event else f"data: {data}\r\n\r\n".encode()


DONE = sse("[DONE]")
"""What ends a stream."""


async def with_errors(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A stream whose last event says what went wrong, where something did."""
    try:
        async for chunk in chunks:
            yield chunk
    except GuardError as error:
        yield sse(json.dumps({"error": {"message": str(error), "type": "guard_error", "code": "guard"}}))
    except TimeoutError:
        error_body = {"message": "The answer took too long.", "type": "server_error", "code": "timeout"}
        yield sse(json.dumps({"error": error_body}))


class Streamed(EventSourceResponse):  # type: ignore[misc]
    """A stream that is let go of however it ends, also where the client left before its first chunk.

    Args:
        chunks: What is sent.
        let_go: Called once at the end.
        grace: Seconds it may go on when the server stops.
    """

    def __init__(self, chunks: AsyncIterator[bytes], let_go: Callable[[], None], grace: float) -> None:
        super().__init__(with_errors(chunks), shutdown_grace_period=grace)
        self._let_go = let_go

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._let_go()
