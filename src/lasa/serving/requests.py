"""What callers send: the part of OpenAI's API that the server understands, and the `lasa` fields beside it.

A field that would change an answer and is not supported is an error, never ignored. What is null or empty asks for
nothing, and what only ever comes out of a model (and is sent back with the conversation) says nothing to it.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator

Text = Annotated[str, StringConstraints(strict=True)]
Off = Annotated[float, Field(ge=0, le=0)]
StopText = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=200)]
MAX_CHOICES = 8
MAX_STOPS = 16
MAX_PROMPTS = 32
MAX_SCORED_TURNS = 32


class Request(BaseModel):
    """What callers send: a field that nobody knows is an error, unless it is null or empty."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"additionalProperties": {"enum": [None, "", [], {}]}},
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {
            name: value
            for name, value in given.items()
            if name in cls.model_fields or not (value is None or value in ("", [], {}))
        }


class Part(Request):
    """A part of a message; only text is understood."""

    type: Literal["text", "input_text", "output_text", "refusal"]
    text: Text = ""
    refusal: Text = ""
    cache_control: dict[str, Any] | None = None
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _text_only(cls, given: Any) -> Any:
        if isinstance(given, dict):
            kind = given.get("type")
            if isinstance(kind, str) and kind not in ("text", "input_text", "output_text", "refusal"):
                raise ValueError(f"the model reads text only, not a part of type {kind[:40]!r}")
            if kind in ("text", "input_text", "output_text") and "text" not in given:
                raise ValueError("a part of this type needs a text")
        return given


def written_as(content: Any) -> str:
    """How a content is written: as a text, or in parts."""
    return "parts" if isinstance(content, list) else "text"


Content = Annotated[Annotated[Text, Tag("text")] | Annotated[list[Part], Tag("parts")], Discriminator(written_as)]


def text_of(content: str | list[Part] | None) -> str:
    """The text of a content, its parts joined."""
    return "".join(part.text or part.refusal for part in content) if isinstance(content, list) else content or ""


class ChatMessage(Request):
    """A message of the conversation. Tool calls of the assistant are history: they are read as their text."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    name: Text | None = None
    tool_call_id: Text | None = None
    tool_calls: list[dict[str, Any]] | None = None
    function_call: dict[str, Any] | None = None
    refusal: Text | None = None
    type: Literal["text", "message"] | None = None
    reasoning: Text | None = Field(None, description="Output of a model; not read.")
    reasoning_content: Text | None = Field(None, description="Output of a model; not read.")
    thinking_blocks: list[Any] | None = Field(None, description="Output of a model; not read.")
    annotations: list[Any] | None = Field(None, description="Output of a model; not read.")
    provider_specific_fields: dict[str, Any] | None = Field(None, description="Output of a proxy; not read.")
    cache_control: dict[str, Any] | None = Field(None, description="For prefix caches; nothing depends on it here.")

    @property
    def text(self) -> str:
        """The content (a refusal, where there is none) as one text, tool calls included as JSON."""
        text = text_of(self.content) or self.refusal or ""
        made = [*(self.tool_calls or ()), *([self.function_call] if self.function_call else [])]
        calls = [json.dumps(call, ensure_ascii=False) for call in made]
        whole = "\n".join([text, *calls] if text else calls)
        return whole.encode("utf-8", "replace").decode("utf-8")  # a tool call may hold half a surrogate pair


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool | None = None


class TextFormat(Request):
    """The only format there is."""

    type: Literal["text"]

    @model_validator(mode="before")
    @classmethod
    def _no_other(cls, given: Any) -> Any:
        kind = given.get("type") if isinstance(given, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise ValueError(f"answers are not constrained to a format here, so {kind[:40]!r} cannot be promised")
        return given


class Sampled(Request):
    """What all requests for an answer have in common."""

    model: Text
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    user: Text | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    lasa: bool = Field(False, description="Return the decision record.")

    @model_validator(mode="after")
    def _no_tools(self) -> "Sampled":
        if self.tools and self.tool_choice != "none":
            raise ValueError("tools: this server cannot call tools; leave them out, or send tool_choice 'none'")
        if not self.tools and (self.tool_choice == "required" or isinstance(self.tool_choice, dict)):
            raise ValueError("tool_choice: this server cannot call tools; leave it out")
        return self


class Drawn(Sampled):
    """What requests for chat and plain completions have in common."""

    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = Field(None, description="0 and -1: all tokens.")
    min_p: Off | None = None
    frequency_penalty: Off | None = None
    presence_penalty: Off | None = None
    repetition_penalty: Annotated[float, Field(ge=1, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class ChatRequest(Drawn):
    """A request for an answer. A last message of the assistant is a prefill: the answer goes on from it."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Options of the chat template that leave the prompt as it is."
    )
    lasa_turns: bool = Field(False, description="Return it with the score at every turn of the conversation.")


def _moderated_as(given: Any) -> str:
    if not isinstance(given, list):
        return "text"
    return "parts" if given and isinstance(given[0], dict) else "texts"


class ModerationRequest(Request):
    """Texts, each judged as a user's message; typed parts are one message."""

    input: Annotated[
        Annotated[Text, Tag("text")]
        | Annotated[list[Text], Field(min_length=1, max_length=128), Tag("texts")]
        | Annotated[list[Part], Field(min_length=1, max_length=128), Tag("parts")],
        Discriminator(_moderated_as),
    ]
    model: Text | None = None

    @property
    def texts(self) -> list[str]:
        """What is judged."""
        if isinstance(self.input, str):
            return [self.input]
        parts = [one for one in self.input if isinstance(one, Part)]
        return ["\n".join(text_of([part]) for part in parts)] if parts else [str(one) for one in self.input]
