"""What stands before the routes: API keys and their limits, the size of requests, a log line and a count for each."""

import asyncio
import hmac
import json
import logging
import time
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lasa.serving.failures import error_response
from lasa.serving.limits import KeyLimits
from lasa.serving.metrics import Metrics
from lasa.serving.settings import ServerSettings

logger = logging.getLogger("lasa.serving")

OPEN_PATHS = ("/", "/health")
BODY_SECONDS = 30


class Gate:
    """ASGI middleware around the whole application.

    Args:
        app: The application.
        metrics: Where requests are counted.
        settings: With the keys one of which callers must give as a bearer token (page and health need none), their
            limits, and the bytes of the largest request body. Without keys all callers have one limit together.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, settings: ServerSettings) -> None:
        self.app, self.metrics, self.max_body = app, metrics, settings.max_body
        self.keys = settings.keys
        self.limits = KeyLimits(settings.max_in_flight, settings.max_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 499  # what nginx calls a client that went away
        facts: dict[str, Any] = {}
        scope["lasa_facts"] = facts

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        key = self._key_of(scope)
        counted = False
        try:
            answer, body = self._refusal(scope, key), b""
            counted = answer is None and scope["method"] == "POST"
            if answer is None:
                answer, body = await self._read(scope, receive)
            if answer is not None:
                await answer(scope, receive, noting)
            else:
                await self.app(scope, _replay(body, receive), noting)
        finally:
            if counted:
                self.limits.leave(key or "")
            seconds = time.monotonic() - started
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            line = {"method": scope["method"], "path": route, "status": status, "seconds": round(seconds, 4), **facts}
            logger.info(json.dumps(line, ensure_ascii=False))

    def _key_of(self, scope: Scope) -> str | None:
        """Which of the keys a request has; "" where none is needed, None where one is and it has none."""
        if not self.keys or scope["path"] in OPEN_PATHS:
            return ""
        given = dict(scope["headers"]).get(b"authorization", b"")
        found = [key for key in self.keys if hmac.compare_digest(given, f"Bearer {key}".encode())]
        return found[0] if found else None

    def _refusal(self, scope: Scope, key: str | None) -> JSONResponse | None:
        """An error to answer with, or None; a POST is counted then."""
        if key is None:
            return error_response(401, "A valid API key is needed as a bearer token.", "invalid_api_key")
        exceeded = self.limits.enter(key) if scope["method"] == "POST" else None
        if exceeded is None:
            return None
        limit, seconds = exceeded
        message = f"{'An API key' if key else 'The server'} may have {limit}; try again in {seconds} s."
        return error_response(429, message, "rate_limit_exceeded", {"Retry-After": str(seconds)})

    async def _read(self, scope: Scope, receive: Receive) -> tuple[JSONResponse | None, bytes]:
        """An error to answer with, or None and the body."""
        headers = dict(scope["headers"])
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _read_body(headers, receive, self.max_body)
        except TimeoutError:
            return error_response(408, f"The request body did not arrive within {BODY_SECONDS} s.", "timeout"), b""
        if body is None:
            return error_response(413, f"The request is larger than {self.max_body} bytes.", "too_large"), b""
        return None, body


async def _read_body(headers: dict[bytes, bytes], receive: Receive, limit: int) -> bytes | None:
    """The whole body, or None if it is larger than the limit."""
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > limit:
        return None
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > limit:
            return None
        if not message.get("more_body", False):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body again, then what the client does next."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
