"""What the server answers, in OpenAI's shapes, and the `lasa` fields beside them."""

from typing import Literal

from pydantic import BaseModel, Field


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
    action: Literal["condition", "refuse", "help", "log", "off"]
    language: str | None
    layer: int
    position: str
    reason: str
    coverage: Literal["covered", "partly", "not covered"] | None = Field(
        None, description="Grade of the language; null: not graded, or not known."
    )
    category: str | None = Field(None, description="The kind of harm; null: benign, or the interpreter is not sure.")
    hazards: list[str] = Field([], description="Codes of MLCommons' hazards that this kind covers.")
    categories: dict[str, float | None] = Field({}, description="Probability of each kind, if harmful.")
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


class ModerationResult(BaseModel):
    """The interpreter's verdict on one text."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float | None]
    category_applied_input_types: dict[str, list[Literal["text"]]]
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
