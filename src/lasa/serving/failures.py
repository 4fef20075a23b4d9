"""How requests fail: which error becomes which status, in OpenAI's shape."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from lasa.errors import GuardError, LasaError
from lasa.serving.scheduler import QueueFullError
from lasa.serving.schema import ErrorResponse


class RequestError(Exception):
    """A request that cannot be answered as it is."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The request is wrong; the message says where."},
    401: {"model": ErrorResponse, "description": "The API key is missing or wrong."},
    404: {"model": ErrorResponse, "description": "There is no such model."},
    408: {"model": ErrorResponse, "description": "The request did not arrive in time."},
    413: {"model": ErrorResponse, "description": "The request is too large."},
    429: {"model": ErrorResponse, "description": "The queue is full, or an API key has its limit; see Retry-After."},
    500: {"model": ErrorResponse, "description": "An error of the server; its log says which."},
    503: {"model": ErrorResponse, "description": "The guard cannot run, so nothing is answered."},
    504: {"model": ErrorResponse, "description": "The answer took too long."},
}


def error_response(
    status: int,
    message: str,
    code: str | None = None,
    headers: dict[str, str] | None = None,
    param: str | None = None,
) -> JSONResponse:
    """An error in OpenAI's shape."""
    kind = {401: "authentication_error", 429: "rate_limit_error", 503: "guard_error"}.get(status)
    kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
    body = {"error": {"message": message, "type": kind, "code": code, "param": param}}
    return JSONResponse(body, status, headers)


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error in OpenAI's shape; the guard's with 503."""

    @app.exception_handler(RequestError)
    async def request_error(_: Request, error: RequestError) -> Response:
        return error_response(error.status, str(error), error.code)

    @app.exception_handler(QueueFullError)
    async def queue_full(_: Request, error: QueueFullError) -> Response:
        headers = {"Retry-After": str(error.retry_after)}
        return error_response(429, f"The queue is full; try again in {error.retry_after} s.", "queue_full", headers)

    @app.exception_handler(GuardError)
    async def guard_error(_: Request, error: GuardError) -> Response:
        return error_response(503, str(error), "guard")

    @app.exception_handler(Exception)  # it is logged, and the caller is told nothing of it
    async def any_error(_: Request, error: Exception) -> Response:
        return error_response(500, "The server made an error; its log says which.")

    @app.exception_handler(TimeoutError)
    async def too_long(_: Request, error: TimeoutError) -> Response:
        return error_response(504, "The answer took too long.", "timeout")

    @app.exception_handler(LasaError)
    async def lasa_error(_: Request, error: LasaError) -> Response:
        return error_response(400, str(error))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        return error_response(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def wrong_request(request: Request, error: RequestValidationError) -> Response:
        kind = request.headers.get("content-type", "")
        if "json" not in kind:
            message = (
                f"The body must be JSON, and be called so: send Content-Type: application/json, not {kind[:80]!r}."
            )
            return error_response(400, message)
        found = [(".".join(str(part) for part in one["loc"] if part != "body"), one) for one in error.errors()[:3]]
        message = "; ".join(f"{where or 'request'}: {_in_words(one)}" for where, one in found)
        return error_response(400, message, param=found[0][0] or None)


def _in_words(error: dict[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "this server does not support it; leave it out"
    return str(error["msg"]).removeprefix("Value error, ")
