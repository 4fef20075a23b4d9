"""Chat completions: an answer as OpenAI's chat endpoint gives it, whole or as a stream of chunks."""

import json
from collections.abc import AsyncIterator
from typing import Any

from lasa.conditioning.decision import Decision
from lasa.models.detokenization import REPLACEMENT
from lasa.serving.answers import DONE, Answering, record, sse
from lasa.serving.schema import AssistantMessage, ChatResponse, Choice, ContentLogprob, Logprobs, TopLogprob
from lasa.serving.served import TokenLogprob
from lasa.serving.tickets import Ended, Written


async def chat_response(answering: Answering) -> ChatResponse:
    """The answer in one piece."""
    outcomes = await answering.outcomes()
    return ChatResponse(
        id=f"chatcmpl-{answering.id}",
        created=answering.created,
        model=answering.model,
        choices=[
            Choice(
                index=index,
                message=AssistantMessage(content=one.answer.text),
                logprobs=_shown(answering, index, [] if one.stopped else answering.logprobs[index]),
                finish_reason=one.answer.finish_reason,
                lasa=record(one.stopped) if one.stopped and answering.explain else None,
            )
            for index, one in enumerate(outcomes)
        ],
        usage=answering.usage,
        lasa=answering.explanation,
    )


async def chat_chunks(answering: Answering, include_usage: bool) -> AsyncIterator[bytes]:
    """The answer as server-sent events, the first of which is not sent before the prompt was read.

    What is there at the same time goes out in one piece.
    """
    head = {
        "id": f"chatcmpl-{answering.id}",
        "object": "chat.completion.chunk",
        "created": answering.created,
        "model": answering.model,
    }

    def event(body: dict[str, Any]) -> bytes:
        return sse(json.dumps({**head, **body}, ensure_ascii=False))

    def chunk(
        index: int,
        delta: dict[str, str],
        *,
        logprobs: list[TokenLogprob] | None = None,
        reason: str | None = None,
        explained: bool = False,
        stopped: Decision | None = None,
    ) -> bytes:
        shown = _shown(answering, index, logprobs) if logprobs else None
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": shown.model_dump() if shown else None,
            "finish_reason": reason,
        }
        if stopped and answering.explain:
            choice["lasa"] = record(stopped).model_dump()
        explanation = answering.explanation if explained else None
        return event({"choices": [choice], **({"lasa": explanation.model_dump()} if explanation else {})})

    begun = range(len(answering.texts))
    yield b"".join(chunk(index, {"role": "assistant", "content": ""}, explained=True) for index in begun)
    last = b""
    async for one in answering.events():
        piece = b""
        if isinstance(one, Written | Ended) and (one.text or one.logprobs):
            piece += chunk(one.row, {"content": one.text}, logprobs=one.logprobs)
        if isinstance(one, Ended):
            reason = one.outcome.answer.finish_reason
            piece += chunk(one.row, {}, reason=reason, explained=True, stopped=one.outcome.stopped)
        if answering.over:
            last = piece
        elif piece:
            yield piece
    if include_usage:
        last += event({"choices": [], "usage": answering.usage.model_dump()})
    yield last + DONE


def _shown(answering: Answering, row: int, logprobs: list[TokenLogprob]) -> Logprobs | None:
    if answering.ticket.rows[row].top_logprobs is None:
        return None
    return Logprobs(
        content=[
            ContentLogprob(
                **_top(answering.tokenizer, one.token, one.logprob).model_dump(),
                top_logprobs=[_top(answering.tokenizer, token, value) for token, value in one.top],
            )
            for one in logprobs
        ]
    )


def _top(tokenizer: Any, token: int, logprob: float) -> TopLogprob:
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    whole = None if REPLACEMENT in text else list(text.encode())
    return TopLogprob(token=text, logprob=max(logprob, -9999.0), bytes=whole)
