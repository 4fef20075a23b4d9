"""What an OpenAI-compatible endpoint sends back: a reply, or an error that may name the option it does not take."""

import re
from dataclasses import dataclass
from typing import Any

import httpx

from lasa.errors import DataError
from lasa.models.generation import FinishReason

RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
LONGEST_DETAIL = 300
"""Characters of a server's words that are quoted."""


class CallError(DataError):
    """A call that gave nothing that can be used.

    Args:
        kind: What failed, in a few words.
        retry: Whether the same request may succeed later.
        wait_s: The wait that the endpoint asked for, in seconds.
        status: The HTTP status, where there was a response.
        detail: The server's own words, where it had any.
    """

    def __init__(
        self,
        kind: str,
        *,
        retry: bool = True,
        wait_s: float | None = None,
        status: int | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(f"The endpoint's reply cannot be used: {kind}.")
        self.kind, self.retry, self.wait_s, self.status, self.detail = kind, retry, wait_s, status, detail

    @property
    def said(self) -> str:
        """What failed, with the server's words."""
        return f"{self.kind} ({self.detail})" if self.detail else self.kind


@dataclass(frozen=True)
class Reply:
    """An assistant's message.

    Attributes:
        text: What it says; "" where it says nothing (the length limit came first, or a filter).
        reasoning: The thoughts that the endpoint gave apart.
        finish_reason: Why it ended, where the endpoint says so.
    """

    text: str
    reasoning: str = ""
    finish_reason: FinishReason | None = None


def read_reply(body: Any) -> Reply:
    """The reply that a response body holds; content in parts (text, thinking) is put together.

    Raises:
        CallError: It holds none.
    """
    try:
        choice = body["choices"][0]
        message = choice["message"]
        content = message.get("content")
        thoughts = message.get("reasoning_content") or message.get("reasoning") or ""
        if isinstance(content, list):
            thoughts = thoughts or "".join(_parts(content, "thinking"))
            content = "".join(_parts(content, "text"))
        if content is None:
            content = message.get("refusal") or ""
        if not isinstance(content, str):
            raise TypeError
        reason = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise CallError("response without a message") from None
    known: dict[str, FinishReason] = {"stop": "stop", "length": "length", "content_filter": "content_filter"}
    return Reply(content, thoughts if isinstance(thoughts, str) else "", known.get(reason))


def read_error(response: httpx.Response) -> CallError:
    """The error that a response stands for, with the server's words."""
    status = response.status_code
    try:
        wait_s = max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        wait_s = None
    return CallError(
        f"HTTP {status}", retry=status in RETRIED_STATUS, wait_s=wait_s, status=status, detail=_words(response)
    )


def without_option(options: dict[str, Any], detail: str) -> dict[str, Any] | None:
    """Options that an endpoint may take which complained of one of these; None where it named none of them.

    `max_tokens` and `max_completion_tokens` stand for each other; a temperature that cannot be chosen, and a
    `response_format` that is not known, are left out.
    """
    names = [name for name in options if re.search(rf"(?<![a-z_]){name}(?![a-z_])", detail)]
    if "response_format" in options and re.search(r"json_object|json mode|response.format", detail, re.IGNORECASE):
        names.append("response_format")
    for name, other in (("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")):
        if name in names and not re.search(r"at most|less than|too large|maximum|exceed", detail):
            return {(other if key == name else key): value for key, value in options.items()}
    dropped = next((name for name in names if name in ("temperature", "response_format")), None)
    return None if dropped is None else {key: value for key, value in options.items() if key != dropped}


def _parts(content: list[Any], kind: str) -> list[str]:
    found = [part.get(kind) for part in content if isinstance(part, dict) and part.get("type") == kind]
    flat = [inner for one in found for inner in (_parts(one, "text") if isinstance(one, list) else [one])]
    return [one for one in flat if isinstance(one, str)]


def _words(response: httpx.Response) -> str:
    try:
        body = response.json()
        error = body.get("error", body)
        words = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        words = response.text
    return " ".join(str(words or "").split())[:LONGEST_DETAIL]
