"""Any OpenAI-compatible endpoint, local or hosted: one client, used to judge with a model and to evaluate one.

A call that fails in any way is repeated, after a wait, unless the endpoint rejects the request for good (HTTP 400, 401,
403, 404 and the like). An option that the endpoint does not take is exchanged or left out, once. Calls, failures and
tokens are counted.
"""

import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from lasa.data.prompts import Message, Prompt
from lasa.data.written import is_empty
from lasa.errors import DataError, RecipeError
from lasa.evaluation.answering import Answer
from lasa.evaluation.reasoning import UNFINISHED, split_reasoning
from lasa.evaluation.replies import CallError, Reply, read_error, read_reply, without_option
from lasa.progress import say

TURNED_DOWN = (400, 413, 422)
"""Statuses with which some endpoints turn down one prompt (a filter, a length), and others every request."""
PROBE: Sequence[Message] = ({"role": "user", "content": "Hello"},)
LONGEST_WAIT_S = 60.0
PAST_PROXY = ("all://localhost", "all://127.0.0.1", "all://[::1]")
"""This machine, which a proxy of the environment does not reach."""

T = TypeVar("T")


@dataclass
class CallUsage:
    """What calling has cost so far.

    Attributes:
        calls: HTTP requests made, retries included.
        retries: Requests made again after a failure.
        failures: Failed requests by kind.
        input_tokens: Tokens sent, as counted by the endpoint.
        output_tokens: Tokens received.
        cost: Price of these tokens, or None when no prices were given.
    """

    calls: int = 0
    retries: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None


class ChatClient:
    """Chat completions from one model behind an endpoint.

    Args:
        base_url: The endpoint up to and including its version, such as `http://localhost:8000/v1`.
        model: The model's name there.
        api_key: Sent as bearer token; it is kept out of every message.
        timeout_s: Limit for one request, in seconds.
        attempts: Requests before a call is given up.
        backoff_s: Wait before the second attempt, in seconds; it doubles with every further one. A `Retry-After`
            header counts instead; both end at a minute.
        parallel: Requests in flight at once.
        options: Further fields of every request (`temperature`, `max_tokens`).
        prices: Price of a million input and of a million output tokens.
        transport: Another httpx transport, for tests and proxies.

    Attributes:
        usage: What calling has cost so far.

    Raises:
        RecipeError: The address is not an http or https URL.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        attempts: int = 4,
        backoff_s: float = 1.0,
        parallel: int = 8,
        options: dict[str, Any] | None = None,
        prices: tuple[float, float] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise RecipeError(f"The address {base_url!r} is no URL. Give one such as http://localhost:8000/v1.")
        self.usage = CallUsage(cost=None if prices is None else 0.0)
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.model, self.options, self.parallel = model, dict(options or {}), parallel
        self._attempts, self._backoff_s, self._prices = attempts, backoff_s, prices
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(
            timeout=timeout_s, headers=headers, transport=transport, mounts=dict.fromkeys(PAST_PROXY)
        )
        self._lock, self._probing, self._has_answered = threading.Lock(), threading.Lock(), False
        weakref.finalize(self, self._client.close)

    def ask(self, messages: Sequence[Message], read: Callable[[Reply], T]) -> T:
        """The reply to a conversation, as read by `read`, which raises `CallError` for one that is no use.

        Raises:
            CallError: Every attempt failed; the last failure.
        """
        for attempt in range(self._attempts):
            if attempt:
                with self._lock:
                    self.usage.retries += 1
            try:
                return read(self._reply(messages))
            except CallError as error:
                with self._lock:
                    self.usage.failures[error.kind] += 1
                if not error.retry or attempt + 1 == self._attempts:
                    raise
                time.sleep(self._wait_s(attempt, error.wait_s))
        raise AssertionError("at least one attempt is made")

    def map(self, call: Callable[[int], T], count: int) -> list[T]:
        """`call(0)` to `call(count - 1)`, as many at once as the endpoint is given, results in order."""
        with ThreadPoolExecutor(max_workers=self.parallel) as pool:
            try:
                return list(pool.map(call, range(count)))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # what would fail the same way is not asked
                raise

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def answers_anything(self) -> bool:
        """Whether the endpoint has answered or answers a harmless question: if not, it turns down every request."""
        with self._probing:
            if not self._has_answered:
                try:
                    self._reply(PROBE)
                except CallError as error:
                    return error.status not in TURNED_DOWN
            return True

    def _reply(self, messages: Sequence[Message]) -> Reply:
        options = self.options
        try:
            reply = self._post({"model": self.model, "messages": list(messages), **options})
        except CallError as error:
            if error.status not in TURNED_DOWN or not self._negotiate(options, error.detail):
                raise
            return self._reply(messages)
        self._has_answered = True
        return reply

    def _negotiate(self, options: dict[str, Any], complaint: str) -> bool:
        """Take options that the endpoint may understand; whether there are others now than those it rejected."""
        with self._lock:
            if self.options is options and (others := without_option(options, complaint)) is not None:
                self.options = others
                asked = ", ".join(others) or "no option"
                say(f"{self.url} says: {complaint.rstrip('. ')}. It is asked with {asked} from now on.")
            return self.options is not options

    def _post(self, body: dict[str, Any]) -> Reply:
        with self._lock:
            self.usage.calls += 1
        try:
            response = self._client.post(self.url, json=body)
        except httpx.TimeoutException:
            raise CallError("timeout") from None
        except httpx.HTTPError as error:
            raise CallError(f"connection error ({type(error).__name__})") from None
        if response.status_code != httpx.codes.OK:
            raise read_error(response)
        try:
            found = response.json()
        except (ValueError, RecursionError):
            raise CallError("response without a message") from None
        reply = read_reply(found)
        self._count_tokens(found.get("usage"))
        return reply

    def _count_tokens(self, usage: object) -> None:
        if not isinstance(usage, dict):
            return
        sent, received = (
            count if isinstance(count := usage.get(name), int) else 0 for name in ("prompt_tokens", "completion_tokens")
        )
        with self._lock:
            self.usage.input_tokens += sent
            self.usage.output_tokens += received
            if self._prices is not None and self.usage.cost is not None:
                self.usage.cost += (sent * self._prices[0] + received * self._prices[1]) / 1e6

    def _wait_s(self, attempt: int, asked_s: float | None) -> float:
        own = self._backoff_s * 2**attempt * random.uniform(0.75, 1.25)
        return min(LONGEST_WAIT_S, own if asked_s is None else asked_s)


class EndpointModel:
    """A model behind an endpoint as the system under evaluation: any provider, our server, or vLLM.

    Args:
        client: The client; its options hold length and temperature.
    """

    budget = 1  # of tokens that are not counted

    def __init__(self, client: ChatClient) -> None:
        self._client = client

    def tokens(self, prompt: Prompt) -> int:
        """Nothing: the endpoint looks after its own memory."""
        return 0

    def __call__(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer per prompt, in order.

        A prompt that the endpoint alone turns down (a content filter, its length) has no answer, nor has one on whose
        answer a filter or the length limit came before its first word.

        Raises:
            DataError: The endpoint does not answer otherwise, or turns down every request; or a prompt has a prefill,
                which the protocol does not know.
        """
        check_no_prefill(prompts)
        return self._client.map(lambda row: self._answer(prompts[row]), len(prompts))

    def _answer(self, prompt: Prompt) -> Answer:
        try:
            reply = self._client.ask(prompt.messages, lambda reply: reply)
        except CallError as error:
            if error.status in TURNED_DOWN and self._client.answers_anything():
                return Answer("", failure=error.said)
            raise DataError(
                f"{self._client.url} does not answer: {error.said}. What was answered is kept; call the same command "
                "again to go on."
            ) from error
        told = split_reasoning(reply.text)
        reasoning, text = reply.reasoning or told.reasoning, told.answer or ""
        failure = ""
        if told.answer is None or (is_empty(text) and reply.finish_reason == "length"):
            failure = UNFINISHED
        elif is_empty(text) and reply.finish_reason == "content_filter":
            failure = "the provider's content filter"
        return Answer(text, failure=failure, reasoning=reasoning, finish_reason=reply.finish_reason)


def check_no_prefill(prompts: Iterable[Prompt]) -> None:
    """Make sure that no answer is to begin with given words, which the protocol does not know.

    Raises:
        DataError: One is.
    """
    if any("prefill" in prompt.details for prompt in prompts):
        raise DataError("An endpoint takes no beginning of an answer (prefill). Evaluate a local folder.")
