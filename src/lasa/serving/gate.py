"""What stands before the routes: the API key, the size of requests, one log line and one count per request."""

import asyncio
import hmac
import json
import logging
import time
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lasa.serving.failures import error_response
from lasa.serving.metrics import Metrics

logger = logging.getLogger("lasa.serving")

OPEN_PATHS = ("/", "/health")
BODY_SECONDS = 30


class Gate:
    """ASGI middleware around the whole application.

    Args:
        app: The application.
        metrics: Where requests are counted.
        api_key: Key that callers must give as a bearer token, or None. Page and health need none.
        max_body: Bytes of the largest request body.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, api_key: str | None, max_body: int) -> None:
        self.app, self.metrics, self.max_body = app, metrics, max_body
        self.expected = f"Bearer {api_key}".encode() if api_key else None

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

        try:
            answer, body = await self._examine(scope, receive)
            if answer is not None:
                await answer(scope, receive, noting)
            else:
                await self.app(scope, _replay(body, receive), noting)
        finally:
            seconds = time.monotonic() - started
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            line = {"method": scope["method"], "path": route, "status": status, "seconds": round(seconds, 4), **facts}
            logger.info(json.dumps(line, ensure_ascii=False))

    async def _examine(self, scope: Scope, receive: Receive) -> tuple[JSONResponse | None, bytes]:
        """An error to answer with, or None and the body."""
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        if self.expected and scope["path"] not in OPEN_PATHS and not hmac.compare_digest(given, self.expected):
            return error_response(401, "A valid API key is needed as a bearer token.", "invalid_api_key"), b""
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
