"""From the scheduler's events to OpenAI's answers, whole or as a stream of chunks."""

import asyncio
import json
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from lasa.conditioning.decision import Decision
from lasa.errors import GuardError
from lasa.guard.turns import TurnDecision
from lasa.models.detokenization import REPLACEMENT
from lasa.serving.batch import TokenLogprob
from lasa.serving.schema import (
    AssistantMessage,
    ChatResponse,
    Choice,
    ContentLogprob,
    DecisionRecord,
    Logprobs,
    TopLogprob,
    TurnRecord,
    Usage,
)
from lasa.serving.tickets import Decided, Ended, Event, Failed, Ticket, Written


def record(decision: Decision, turns: Sequence[TurnDecision] = ()) -> DecisionRecord:
    """A decision as JSON, with those at every turn where they are known."""
    by_turn = [TurnRecord(message=t.message, score=_score(t.decision), band=t.decision.band) for t in turns]
    return DecisionRecord(**{**asdict(decision), "score": _score(decision)}, turns=by_turn or None)


def _score(decision: Decision) -> float | None:
    """The score; one that is no number becomes null in JSON."""
    return decision.score if math.isfinite(decision.score) else None


class Answering:
    """One chat request on its way to an answer.

    Args:
        ticket: Its rows.
        events: Where the scheduler's events about them arrive.
        tokenizer: For the texts of tokens.
        model: Name of the model.
        explain: Whether the decision record was asked for.
    """

    def __init__(self, ticket: Ticket, events: asyncio.Queue[Event], tokenizer: Any, model: str, explain: bool) -> None:
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self.ticket, self.events = ticket, events
        self.tokenizer, self.model, self.explain = tokenizer, model, explain
        self.decision: Decision | None = None
        self.turns: Sequence[TurnDecision] = ()
        self.texts = [""] * len(ticket.rows)
        self.ended: dict[int, Ended] = {}
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in ticket.rows]

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        prompt = len(self.ticket.rows[0].question.rendered.token_ids)
        completion = sum(len(one.outcome.answer.token_ids) for one in self.ended.values())
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)

    async def next(self) -> Event:
        """The next event, taken note of.

        Raises:
            GuardError: The guard could not do its work.
            DataError: The conversation cannot be read at one of its turns.
            TimeoutError: The deadline has passed.
        """
        async with asyncio.timeout(max(0.0, self.ticket.deadline - time.monotonic())):
            event = await self.events.get()
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Decided):
            self.decision, self.turns = self.decision or event.decision, self.turns or event.turns
        else:
            self.texts[event.row] += event.text
            self._logprobs[event.row] += event.logprobs
        if isinstance(event, Ended):
            self.ended[event.row] = event
        return event

    @property
    def complete(self) -> bool:
        """Whether all rows have ended."""
        return len(self.ended) == len(self.ticket.rows)

    async def whole(self) -> ChatResponse:
        """The answer in one piece."""
        while not self.complete:
            await self.next()
        assert self.decision is not None
        return ChatResponse(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[
                Choice(
                    index=index,
                    message=AssistantMessage(content=one.outcome.answer.text),
                    logprobs=self._shown(index, [] if one.outcome.stopped else self._logprobs[index]),
                    finish_reason=one.outcome.answer.finish_reason,
                    lasa=record(one.outcome.stopped) if one.outcome.stopped and self.explain else None,
                )
                for index, one in sorted(self.ended.items())
            ],
            usage=self.usage,
            lasa=record(self.decision, self.turns) if self.explain else None,
        )

    async def chunks(self, include_usage: bool) -> AsyncIterator[dict[str, str]]:
        """The answer as server-sent events, the first of which was not sent before the prompt was read."""
        try:
            for index in range(len(self.texts)):
                yield self._chunk(index, {"role": "assistant", "content": ""}, decision=self.decision)
            while not self.complete:
                event = await self.next()
                if isinstance(event, Written | Ended) and (event.text or event.logprobs):
                    yield self._chunk(event.row, {"content": event.text}, logprobs=event.logprobs)
                if isinstance(event, Ended):
                    stopped, reason = event.outcome.stopped, event.outcome.answer.finish_reason
                    yield self._chunk(event.row, {}, reason=reason, decision=self.decision, stopped=stopped)
            if include_usage:
                yield self._event({"choices": [], "usage": self.usage.model_dump()})
            yield {"data": "[DONE]"}
        except GuardError as error:
            yield {"data": json.dumps({"error": {"message": str(error), "type": "guard_error", "code": "guard"}})}
        except TimeoutError:
            error_body = {"message": "The answer took too long.", "type": "server_error", "code": "timeout"}
            yield {"data": json.dumps({"error": error_body})}

    def _chunk(
        self,
        index: int,
        delta: dict[str, str],
        *,
        logprobs: list[TokenLogprob] | None = None,
        reason: str | None = None,
        decision: Decision | None = None,
        stopped: Decision | None = None,
    ) -> dict[str, str]:
        shown = self._shown(index, logprobs or [])
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": shown.model_dump() if shown and logprobs else None,
            "finish_reason": reason,
        }
        if stopped and self.explain:
            choice["lasa"] = record(stopped).model_dump()
        explained = {"lasa": record(decision, self.turns).model_dump()} if decision and self.explain else {}
        return self._event({"choices": [choice], **explained})

    def _event(self, body: dict[str, Any]) -> dict[str, str]:
        head = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
        return {"data": json.dumps({**head, **body}, ensure_ascii=False)}

    def _shown(self, row: int, logprobs: list[TokenLogprob]) -> Logprobs | None:
        if self.ticket.rows[row].top_logprobs is None:
            return None
        return Logprobs(
            content=[
                ContentLogprob(
                    **self._top(one.token, one.logprob).model_dump(),
                    top_logprobs=[self._top(token, value) for token, value in one.top],
                )
                for one in logprobs
            ]
        )

    def _top(self, token: int, logprob: float) -> TopLogprob:
        text = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        whole = None if REPLACEMENT in text else list(text.encode())
        return TopLogprob(token=text, logprob=max(logprob, -9999.0), bytes=whole)


class Streamed(EventSourceResponse):  # type: ignore[misc]
    """A stream that is let go of however it ends, also where the client left before its first chunk.

    Args:
        chunks: What is sent.
        let_go: Called once at the end.
        grace: Seconds it may go on when the server stops.
    """

    def __init__(self, chunks: AsyncIterator[dict[str, str]], let_go: Callable[[], None], grace: float) -> None:
        super().__init__(chunks, shutdown_grace_period=grace)
        self._let_go = let_go

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._let_go()
