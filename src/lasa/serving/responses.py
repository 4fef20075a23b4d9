"""OpenAI's Responses API, for text: nothing is stored, and there are no tools."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from lasa.guard.row import GuardedAnswer
from lasa.serving.answers import Answering, sse
from lasa.serving.requests import (
    ChatMessage,
    ChatRequest,
    Content,
    Request,
    Sampled,
    StreamOptions,
    Text,
    TextFormat,
    text_of,
    written_as,
)
from lasa.serving.schema import DecisionRecord
from lasa.serving.tickets import Ended, Written


class Item(Request):
    """A message of the conversation, as it was sent or as it came out."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    type: Literal["message"] = "message"
    id: Text | None = None
    status: Text | None = None
    phase: Text | None = None


class TextOptions(Request):
    """How text is to come out."""

    format: TextFormat | None = None


class ResponsesRequest(Sampled):
    """A request for an answer to a text or a conversation; items of reasoning in it are not read."""

    input: Annotated[
        Annotated[Text, Tag("text")] | Annotated[list[Item], Field(min_length=1, max_length=999), Tag("parts")],
        Discriminator(written_as),
    ]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    stream_options: StreamOptions | None = None
    text: TextOptions | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    include: list[Literal["reasoning.encrypted_content"]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_reasoning(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("input"), list):
            kept = [one for one in given["input"] if not (isinstance(one, dict) and one.get("type") == "reasoning")]
            return {**given, "input": kept}
        return given

    def as_chat(self) -> list[ChatRequest]:
        """The chat request of the same meaning."""
        items = [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        messages = [ChatMessage(role=one.role, content=text_of(one.content)) for one in items]
        if self.instructions:
            messages.insert(0, ChatMessage(role="system", content=self.instructions))
        shared = self.model_dump(include={"model", "temperature", "top_p", "lasa", "stream"}, exclude_unset=True)
        return [ChatRequest(**shared, messages=messages, max_tokens=self.max_output_tokens)]


class OutputText(BaseModel):
    """A text of the answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[None] = []
    logprobs: list[None] = []


class OutputMessage(BaseModel):
    """The answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class Incomplete(BaseModel):
    """Why an answer is not what it could have been: its length, or the guard."""

    reason: Literal["max_output_tokens", "content_filter"]


class ResponsesUsage(BaseModel):
    """Numbers of tokens; condition and prefill are not counted."""

    input_tokens: int
    input_tokens_details: dict[Literal["cached_tokens"], int] = {"cached_tokens": 0}
    output_tokens: int
    output_tokens_details: dict[Literal["reasoning_tokens"], int] = {"reasoning_tokens": 0}
    total_tokens: int


class ResponsesResponse(BaseModel):
    """The answer, with what was asked for as far as it had a choice."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    model: str
    output: list[OutputMessage]
    incomplete_details: Incomplete | None = None
    error: None = None
    usage: ResponsesUsage | None = None
    instructions: None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = False
    tool_choice: Literal["none"] = "none"
    tools: list[None] = []
    temperature: float | None = None
    top_p: float | None = None
    lasa: DecisionRecord | None = None


async def responses_response(answering: Answering) -> ResponsesResponse:
    """The answer in one piece."""
    (outcome,) = await answering.outcomes()
    return _ended(answering, outcome)


async def responses_chunks(answering: Answering, include_usage: bool) -> AsyncIterator[bytes]:
    """The answer as server-sent events, each with its kind and number; the last one holds the whole answer."""
    number = 0

    def event(kind: str, **body: Any) -> bytes:
        nonlocal number
        told = {"type": kind, "sequence_number": number, **body}
        number += 1
        return sse(json.dumps(told, ensure_ascii=False), kind)

    begun = _response(answering, "in_progress", []).model_dump()
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    message = OutputMessage(id=f"msg_{answering.id}", status="in_progress", content=[])
    yield event("response.output_item.added", output_index=0, item=message.model_dump())
    place = {"item_id": message.id, "output_index": 0, "content_index": 0}
    yield event("response.content_part.added", **place, part=OutputText(text="").model_dump())
    async for one in answering.events():
        if isinstance(one, Written | Ended) and one.text:
            yield event("response.output_text.delta", **place, delta=one.text, logprobs=[])
    # what was shown before the guard stopped an answer stays in the text, as it does for who read along
    whole = _ended(answering, answering.ended[0].outcome, answering.texts[0])
    (said,) = whole.output
    yield event("response.output_text.done", **place, text=answering.texts[0], logprobs=[])
    yield event("response.content_part.done", **place, part=said.content[0].model_dump())
    yield event("response.output_item.done", output_index=0, item=said.model_dump())
    yield event(f"response.{whole.status}", response=whole.model_dump())


def _ended(answering: Answering, outcome: GuardedAnswer, text: str | None = None) -> ResponsesResponse:
    reason = outcome.answer.finish_reason
    status: Literal["completed", "incomplete"] = "completed" if reason == "stop" else "incomplete"
    part = OutputText(text=outcome.answer.text if text is None else text)
    whole = _response(answering, status, [OutputMessage(id=f"msg_{answering.id}", status=status, content=[part])])
    if reason != "stop":
        whole.incomplete_details = Incomplete(reason="max_output_tokens" if reason == "length" else "content_filter")
    usage = answering.usage
    whole.usage = ResponsesUsage(
        input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens, total_tokens=usage.total_tokens
    )
    return whole


def _response(
    answering: Answering, status: Literal["in_progress", "completed", "incomplete"], output: list[OutputMessage]
) -> ResponsesResponse:
    settings = answering.ticket.rows[0].settings
    return ResponsesResponse(
        id=f"resp_{answering.id}",
        created_at=answering.created,
        status=status,
        model=answering.model,
        output=output,
        temperature=settings.temperature,
        top_p=settings.top_p,
        lasa=answering.explanation,
    )
