"""Plain completions, for clients that speak nothing else: each prompt is read and answered as a user's message."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from lasa.serving.answers import DONE, Answering, sse
from lasa.serving.requests import MAX_PROMPTS, ChatMessage, ChatRequest, Drawn, Text
from lasa.serving.schema import DecisionRecord, Usage
from lasa.serving.tickets import Ended, Written


class CompletionRequest(Drawn):
    """Prompts, each a user's message; token ids are refused, for they could be anything."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_token_ids(cls, given: Any) -> Any:
        prompt = given.get("prompt") if isinstance(given, dict) else None
        if isinstance(prompt, list) and any(isinstance(one, int | list) for one in prompt):
            raise ValueError("prompt: token ids are not taken; send the text, which becomes a user's message")
        return given

    def as_chat(self) -> list[ChatRequest]:
        """The chat request for each prompt."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        shared = self.model_dump(include=set(Drawn.model_fields) & set(ChatRequest.model_fields), exclude_unset=True)
        return [ChatRequest(**shared, messages=[ChatMessage(role="user", content=one)]) for one in prompts]


class CompletionChoice(BaseModel):
    """One answer."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length", "content_filter"] | None


class CompletionResponse(BaseModel):
    """The answers to the prompts, or a piece of one; `lasa` is the decision on the first prompt."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    lasa: DecisionRecord | None = None


async def completion_response(answering: Answering) -> CompletionResponse:
    """The answers in one piece."""
    outcomes = await answering.outcomes()
    choices = [
        CompletionChoice(index=index, text=one.answer.text, finish_reason=one.answer.finish_reason)
        for index, one in enumerate(outcomes)
    ]
    return _made(answering, choices, usage=answering.usage, lasa=answering.explanation)


async def completion_chunks(answering: Answering, include_usage: bool) -> AsyncIterator[bytes]:
    """The answers as server-sent events."""

    def event(choices: list[CompletionChoice], **rest: Any) -> bytes:
        chunk = _made(answering, choices, **rest).model_dump(exclude_none=not choices)
        return sse(json.dumps(chunk, ensure_ascii=False))

    async for one in answering.events():
        if isinstance(one, Written | Ended) and one.text:
            yield event([CompletionChoice(index=one.row, text=one.text, finish_reason=None)])
        if isinstance(one, Ended):
            reason = one.outcome.answer.finish_reason
            choice = CompletionChoice(index=one.row, text="", finish_reason=reason)
            yield event([choice], lasa=answering.explanation)
    if include_usage:
        yield event([], usage=answering.usage)
    yield DONE


def _made(answering: Answering, choices: list[CompletionChoice], **rest: Any) -> CompletionResponse:
    return CompletionResponse(
        id=f"cmpl-{answering.id}", created=answering.created, model=answering.model, choices=choices, **rest
    )
