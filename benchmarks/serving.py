"""A load test of the server: 64 streams kept open for two minutes, half of the prompts flagged, some broken off.

Every answer is compared with the one its prompt gets alone, so a lost, mixed-up or leaking request shows. The tokens
per second are set beside those of plain `generate` on batches of as many prompts, which needs no queue, no streams and
never waits for a newcomer.
"""

import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import torch
import uvicorn
from harness import SMOKE, Ratio, Scale
from random_model import make_model, make_prompts, make_tokenizer
from serving_clients import Load, run_clients

from lasa.guard.guard import Guard
from lasa.interpreter.probe import InterpreterConfig, SafetySemanticInterpreter
from lasa.models.generation import GenerationSettings, generate
from lasa.models.hidden_states import ReadPoint
from lasa.models.rendering import render, template_fingerprint
from lasa.serving.app import ServerSettings, create_app

STREAMS, SECONDS, SMOKE_SECONDS = 64, 120, 3
NEW_TOKENS = 32


def measure(scale: Scale) -> list[Ratio]:
    guard = _guard(scale)
    prompts = make_prompts(32, 12, 96)
    decisions = guard.decide([p.messages for p in prompts])
    middle = float(np.median([decision.score for decision in decisions]))
    guard.interpreter.config = replace(guard.interpreter.config, threshold=middle)
    settings = GenerationSettings(max_new_tokens=NEW_TOKENS)
    expected = [guard.generate([p.messages], settings)[0].answer.text for p in prompts]
    ids = [render(guard.tokenizer, prompts[row % len(prompts)].messages).token_ids for row in range(STREAMS)]

    def plain_rate() -> float:
        started = time.monotonic()
        tokens = sum(len(one.token_ids) for one in generate(guard.model, guard.tokenizer, ids, settings))
        return tokens / (time.monotonic() - started)

    before = plain_rate()
    load, left = _serve(guard, [p.text for p in prompts], expected, SMOKE_SECONDS if scale == SMOKE else SECONDS)
    rate, plain = load.tokens / load.elapsed, max(before, plain_rate())
    p50, p99 = np.percentile(load.seconds, (50, 99))
    first, first_p99 = np.percentile(load.first, (50, 99))
    asked = len(load.seconds) + load.lost + load.broken_off
    return [
        Ratio(
            f"{STREAMS} streams: lost or mixed-up answers, slots never freed",
            load.lost + load.mixed_up + left,
            0,
            detail=f"{asked} requests in {load.elapsed:.0f} s, {load.broken_off} broken off by the client, {load.lost} "
            f"lost, {load.mixed_up} mixed up, {left} slots left; p50 {p50:.2f} s, "
            f"p99 {p99:.2f} s; first text p50 {first:.2f} s, p99 {first_p99:.2f} s",
        ),
        Ratio(
            f"{STREAMS} streams: share of answers that differ from what their prompt gets alone",
            (load.different + load.mixed_up) / max(1, len(load.seconds)),
            0.01,
            detail=f"{load.different} rounded otherwise of {len(load.seconds)} complete answers",
        ),
        Ratio(
            "server tokens per second / plain generate",
            rate / plain,
            0.8,
            at_least=True,
            detail=f"{rate:.0f} / {plain:.0f} tokens/s",
        ),
    ]


def _guard(scale: Scale) -> Guard:
    model, tokenizer = make_model(scale), make_tokenizer()
    torch.manual_seed(1)
    point = ReadPoint(scale.layers // 2, "last", template_fingerprint(tokenizer))
    return Guard(model, tokenizer, SafetySemanticInterpreter(InterpreterConfig(point, scale.width, 32)).eval())


def _serve(guard: Guard, prompts: list[str], expected: list[str], seconds: float) -> tuple[Load, int]:
    """The clients' view, and the slots that were not free in the end."""
    app = create_app(guard, ServerSettings(model_name="load", max_rows=STREAMS))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            load = pool.submit(run_clients, url, prompts, expected, NEW_TOKENS, STREAMS, seconds).result()
        time.sleep(1)
        return load, sum(app.state.scheduler.load)
    finally:
        server.should_exit = True
        thread.join()
