"""What goes over the wire: the part of OpenAI's API that the server speaks, and the `lasa` fields beside it.

A field that would change an answer and is not supported is an error, never ignored.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Text = Annotated[str, StringConstraints(strict=True)]
StopText = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=200)]
MAX_CHOICES = 8
MAX_SCORED_TURNS = 32


class Part(BaseModel):
    """A part of a message; only text is understood."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    """A message of the conversation. Tool calls of the assistant are history: they are read as their text."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Part] | None = None
    name: Text | None = None
    tool_call_id: Text | None = None
    tool_calls: list[dict[str, Any]] | None = None
    refusal: Text | None = None

    @property
    def text(self) -> str:
        """The content as one text, tool calls included as JSON."""
        content = self.content or ""
        text = "".join(part.text for part in content) if isinstance(content, list) else content
        calls = [json.dumps(call, ensure_ascii=False) for call in self.tool_calls or ()]
        whole = "\n".join([text, *calls] if text else calls)
        return whole.encode("utf-8", "replace").decode("utf-8")  # a tool call may hold half a surrogate pair


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class TextFormat(BaseModel):
    """The only format there is."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]


class ChatRequest(BaseModel):
    """A request for an answer. A last message of the assistant is a prefill: the answer goes on from it."""

    model_config = ConfigDict(extra="forbid")
    model: Text
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    response_format: TextFormat | None = None
    user: Text | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    lasa: bool = Field(False, description="Return the decision record.")
    lasa_turns: bool = Field(False, description="Return it with the score at every turn of the conversation.")


class TurnRecord(BaseModel):
    """What would have been decided earlier in the conversation, after the message at a position."""

    message: int
    score: float | None
    band: Literal["benign", "controversial", "harmful"]


class DecisionRecord(BaseModel):
    """Why a conversation was treated as it was; see `lasa.conditioning.decision.Decision`."""

    score: float | None = Field(description="Probability that the conversation is harmful; null: not a number.")
    threshold: float
    band: Literal["benign", "controversial", "harmful"]
    action: Literal["condition", "refuse", "log", "off"]
    language: str | None
    layer: int
    position: str
    reason: str
    turns: list[TurnRecord] | None = None


class TopLogprob(BaseModel):
    """A token that could have come; `bytes` is null where it holds part of a character only."""

    token: str
    logprob: float
    bytes: list[int] | None


class ContentLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """The tokens of an answer."""

    content: list[ContentLogprob]


class AssistantMessage(BaseModel):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """One of the `n` answers; `lasa` only where the answer was stopped when it was read again."""

    index: int
    message: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length", "content_filter"]
    lasa: DecisionRecord | None = None


class Usage(BaseModel):
    """Numbers of tokens; condition and prefill are not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatResponse(BaseModel):
    """The answers to a request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    lasa: DecisionRecord | None = None


class ModerationRequest(BaseModel):
    """Texts, each judged as a user's message."""

    model_config = ConfigDict(extra="forbid")
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=128)]
    model: Text | None = None


class ModerationResult(BaseModel):
    """The interpreter's verdict on one text."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float | None]
    lasa: DecisionRecord


class ModerationResponse(BaseModel):
    """The verdicts in the order of the texts."""

    id: str
    model: str
    results: list[ModerationResult]


class ModelCard(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["lasa"] = "lasa"


class ModelList(BaseModel):
    """All models that are served."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """Whether the guard can answer."""

    status: Literal["ok", "failing", "stopping"]
    running: int
    waiting: int


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    code: str | None = None
    param: str | None = None


class ErrorResponse(BaseModel):
    """An error in OpenAI's shape."""

    error: ErrorBody
