"""The server: OpenAI's endpoints for text and moderation over the guard, health, metrics, and a page to try it.

Nothing is answered without a read: where the guard fails, or the server is shutting down, the answer is 503.
"""

import asyncio
import contextlib
import html
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import generate_latest
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from lasa.data.prompts import Message
from lasa.errors import GuardError
from lasa.guard.guard import Guard
from lasa.guard.turns import reading_points
from lasa.models.generation import GenerationSettings
from lasa.models.template_options import same_prompt
from lasa.serving.answers import Answering, Deliveries, Streamed, moderated, record
from lasa.serving.chat import chat_chunks, chat_response
from lasa.serving.completions import CompletionRequest, CompletionResponse, completion_chunks, completion_response
from lasa.serving.failures import ERRORS, RequestError, install_error_handlers
from lasa.serving.gate import Gate
from lasa.serving.metrics import Metrics
from lasa.serving.requests import MAX_SCORED_TURNS, ChatRequest, ModerationRequest, StreamOptions
from lasa.serving.responses import ResponsesRequest, ResponsesResponse, responses_chunks, responses_response
from lasa.serving.scheduler import QueueFullError, Scheduler
from lasa.serving.schema import ChatResponse, Health, ModelCard, ModelList, ModerationResponse
from lasa.serving.served import ServedAnswer
from lasa.serving.settings import ServerSettings
from lasa.serving.tickets import Ticket

T = TypeVar("T")
Whole = Callable[[Answering], Coroutine[Any, Any, BaseModel]]
Chunks = Callable[[Answering, bool], AsyncIterator[bytes]]
PROBE_SECONDS = 5.0
ROLES: dict[str, Literal["system", "tool"]] = {"developer": "system", "function": "tool"}
OPENAIS_MODERATION = ("omni-moderation-", "text-moderation-")
"""How the names of OpenAI's moderation models begin, which clients send by default; the model here answers them."""


def create_app(guard: Guard, settings: ServerSettings | None = None) -> FastAPI:
    """The server as an ASGI application.

    Args:
        guard: What answers.
        settings: Limits and defaults.

    Raises:
        GuardError: The guard cannot run; nothing is served then.
    """
    settings = settings or ServerSettings()
    metrics = Metrics()
    scheduler = Scheduler(
        guard,
        max_rows=settings.max_rows,
        max_tokens=settings.max_tokens,
        max_queue=settings.max_queue,
        metrics=metrics,
    )
    created = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(scheduler.close, settings.shutdown_timeout)

    app = FastAPI(title="lasa", version=version("lasa"), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.scheduler, app.state.deliveries = scheduler, Deliveries()
    install_error_handlers(app)
    app.add_middleware(Gate, metrics=metrics, settings=settings)

    stream_type: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/event-stream": {}}, "description": "The answer, or a stream of chunks."}
    }

    async def answer(
        chats: Sequence[ChatRequest], request: Request, whole: Whole, chunks: Chunks, options: StreamOptions | None
    ) -> Response:
        """Answer conversations of one request, in the form of its endpoint."""
        started = time.monotonic()
        body = chats[0]
        _check_model(body.model, settings)
        rows = await run_in_threadpool(lambda: [row for chat in chats for row in _rows(guard, chat, settings)])
        facts: dict[str, Any] = request.scope["lasa_facts"]
        if settings.log_prompts:
            facts["messages"] = [{"role": m.role, "content": m.text} for chat in chats for m in chat.messages]
        answering = _open(
            rows,
            request,
            settings,
            explain=body.lasa or body.lasa_turns,
            by_turn=body.lasa_turns,
            streamed=bool(body.stream),
        )
        scheduler.submit(answering.ticket)

        def let_go() -> None:
            scheduler.cancel(answering.ticket)
            metrics.seconds.observe(time.monotonic() - started)
            facts.update(id=answering.id, stream=bool(body.stream), **answering.usage.model_dump())
            facts.update(record(answering.decision).model_dump(exclude={"categories"}) if answering.decision else {})
            facts["finish_reasons"] = [one.outcome.answer.finish_reason for one in answering.ended.values()]
            if settings.log_prompts:
                facts["answers"] = answering.texts

        if not body.stream:
            try:
                made = await _while_connected(request, whole(answering))
            finally:
                let_go()
            return JSONResponse(made.model_dump())
        try:
            await _while_connected(request, answering.next())
        except BaseException:
            let_go()
            raise
        metrics.first.observe(time.monotonic() - started)
        include_usage = bool(options and options.include_usage)
        return Streamed(chunks(answering, include_usage), let_go, settings.shutdown_timeout)

    @app.post("/v1/chat/completions", response_model=ChatResponse, responses={**stream_type, **ERRORS})
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation, whole or as a stream of server-sent events."""
        return await answer([body], request, chat_response, chat_chunks, body.stream_options)

    @app.post("/v1/completions", response_model=CompletionResponse, responses={**stream_type, **ERRORS})
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Answer prompts, each as if a user had sent it as a message."""
        return await answer(body.as_chat(), request, completion_response, completion_chunks, body.stream_options)

    @app.post("/v1/responses", response_model=ResponsesResponse, responses={**stream_type, **ERRORS})
    async def respond(body: ResponsesRequest, request: Request) -> Response:
        """Answer a text or a conversation; nothing is stored."""
        return await answer(body.as_chat(), request, responses_response, responses_chunks, body.stream_options)

    @app.post("/v1/moderations", responses={**ERRORS})
    async def moderate(body: ModerationRequest, request: Request) -> ModerationResponse:
        """The interpreter's verdict on texts; nothing is generated."""
        if body.model is not None and not body.model.startswith(OPENAIS_MODERATION):
            _check_model(body.model, settings)
        texts = body.texts
        rows = await run_in_threadpool(
            lambda: [
                ServedAnswer(guard.question(({"role": "user", "content": t},)), GenerationSettings(0)) for t in texts
            ]
        )
        answering = _open(rows, request, settings, explain=True)
        scheduler.submit(answering.ticket)
        try:
            outcomes = await _while_connected(request, answering.outcomes())
        finally:
            scheduler.cancel(answering.ticket)
        results = [moderated(outcome.decision) for outcome in outcomes]
        return ModerationResponse(id=f"modr-{answering.id}", model=settings.model_name, results=results)

    card = ModelCard(id=settings.model_name, created=created)

    @app.get("/v1/models", responses={401: ERRORS[401]})
    async def models() -> ModelList:
        """The model that is served."""
        return ModelList(data=[card])

    @app.get("/v1/models/{name:path}", responses={401: ERRORS[401], 404: ERRORS[404]})
    async def model(name: str) -> ModelCard:
        """The model of that name."""
        _check_model(name, settings)
        return card

    @app.get("/health", response_model=Health, responses={503: {"model": Health, "description": "It cannot answer."}})
    async def health(request: Request) -> JSONResponse:
        """Whether the guard answers; after a failure it is tried out again, and the answer is 503 while that fails."""
        if scheduler.failure and not scheduler.closed:
            await _probe(request, settings)
        running, waiting = scheduler.load
        found = Health(status="ok", running=running, waiting=waiting)
        if scheduler.closed or scheduler.failure:
            found.status = "stopping" if scheduler.closed else "failing"
        return JSONResponse(found.model_dump(), 200 if found.status == "ok" else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses={401: ERRORS[401]})
    async def prometheus() -> Response:
        """What the server has counted, for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(
            files("lasa.serving").joinpath("chat.html").read_text("utf-8").replace("{{model}}", html.escape(card.id)),
            headers={
                "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src data:; "
                "script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
                "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
                "X-Content-Type-Options": "nosniff",
            },
        )

    return app


async def _probe(request: Request, settings: ServerSettings) -> None:
    """Let the guard read something, so that a server to which nobody sends requests any more sees that it can."""
    scheduler: Scheduler = request.app.state.scheduler
    row = ServedAnswer(scheduler.guard.question(({"role": "user", "content": "hello"},)), GenerationSettings(0))
    answering = _open([row], request, settings.model_copy(update={"timeout": PROBE_SECONDS}), explain=False)
    with contextlib.suppress(GuardError, QueueFullError, TimeoutError):
        scheduler.submit(answering.ticket)
        await answering.outcomes()
    scheduler.cancel(answering.ticket)


def _rows(guard: Guard, body: ChatRequest, settings: ServerSettings) -> list[ServedAnswer]:
    messages: list[Message] = [{"role": ROLES.get(m.role, m.role), "content": m.text} for m in body.messages]
    prefill = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
    if not messages or messages[-1]["role"] not in ("user", "tool") or all(m["role"] != "user" for m in messages):
        raise RequestError(
            400,
            "The conversation needs a user message, and must end in a user or tool message (or a prefill after it).",
        )
    if body.lasa_turns and len(reading_points(messages)) > MAX_SCORED_TURNS:
        raise RequestError(400, f"lasa_turns: the conversation has more than {MAX_SCORED_TURNS} turns to score.")
    if body.chat_template_kwargs and not same_prompt(guard.tokenizer, messages, body.chat_template_kwargs):
        raise RequestError(
            400,
            "chat_template_kwargs: they change the prompt, so it is not read as it was in training; leave them out.",
        )
    question = guard.question(messages, prefill=prefill)
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    asked = body.max_completion_tokens or body.max_tokens or settings.max_new_tokens
    top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return [
        ServedAnswer(
            question,
            GenerationSettings(
                max_new_tokens=min(asked, settings.max_new_tokens),
                temperature=settings.temperature if body.temperature is None else body.temperature,
                top_p=1.0 if body.top_p is None else body.top_p,
                top_k=max(0, body.top_k or 0),
                stop=stop,
                seed=None if body.seed is None else (body.seed + index) % 2**63,
            ),
            top_logprobs,
        )
        for index in range(body.n or 1)
    ]


def _open(
    rows: list[ServedAnswer],
    request: Request,
    settings: ServerSettings,
    *,
    explain: bool,
    by_turn: bool = False,
    streamed: bool = False,
) -> Answering:
    """A request whose events come out of the worker thread into this event loop."""
    queue, deliver = request.app.state.deliveries.queue()
    ticket = Ticket(rows, deliver, time.monotonic() + settings.timeout, by_turn, streamed)
    return Answering(ticket, queue, request.app.state.scheduler.guard.tokenizer, settings.model_name, explain)


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, given up when the client goes away."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise RequestError(499, "The client went away.")
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def _check_model(name: str, settings: ServerSettings) -> None:
    if name != settings.model_name:
        message = f"There is no model {name!r} here; the model is {settings.model_name!r}."
        raise RequestError(404, message, "model_not_found")
