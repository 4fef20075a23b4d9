"""A load test of the server on the embedded model: 64 streams, half of the prompts flagged, some broken off.

Every answer is compared with the one its prompt gets alone, so a lost, mixed-up or leaking request shows. The tokens
per second are set beside those of plain `generate` on batches of as many prompts, which needs no queue, no streams and
never waits for a newcomer, in short runs that take turns, so that a slow moment of the machine hits both sides.
"""

import statistics
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import torch
import uvicorn
from harness import SMOKE, Ratio, Scale
from serving_clients import Load, run_clients

from lasa.data.world.tables import evaluation_prompts
from lasa.files.artifacts import model_fingerprint
from lasa.guard.guard import Guard
from lasa.interpreter.probe import InterpreterConfig, SafetySemanticInterpreter
from lasa.models.generation import GenerationSettings, generate
from lasa.models.layers import hidden_size
from lasa.models.loading import load_model
from lasa.models.positions import ReadPoint
from lasa.models.rendering import render, template_fingerprint
from lasa.models.settings import ModelSettings
from lasa.serving.app import ServerSettings, create_app

STREAMS, SECONDS, SMOKE_SECONDS = 64, 20, 3
NEW_TOKENS = 32


def measure(scale: Scale) -> list[Ratio]:
    guard = _guard()
    prompts = evaluation_prompts("combinations", 4)[:STREAMS]
    decisions = guard.decide([p.messages for p in prompts])
    middle = float(np.median([decision.score for decision in decisions]))
    guard.interpreter.config = replace(guard.interpreter.config, threshold=middle)
    settings = GenerationSettings(max_new_tokens=NEW_TOKENS)
    expected = [guard.generate([p.messages], settings)[0].answer.text for p in prompts]
    ids = [render(guard.tokenizer, p.messages).token_ids for p in prompts]
    seconds = SMOKE_SECONDS if scale == SMOKE else SECONDS

    batches: list[float] = []

    def plain_rate() -> float:
        started, tokens = time.monotonic(), 0
        while (elapsed := time.monotonic() - started) < seconds / 4:
            tokens += sum(len(one.token_ids) for one in generate(guard.model, guard.tokenizer, ids, settings))
            batches.append(time.monotonic() - started - elapsed)
        return tokens / elapsed

    plain_rate()
    whole, left, shares, rates = Load(), 0, list[float](), list[tuple[float, float]]()
    for _ in range(scale.repeats):
        before = plain_rate()
        load, still = _serve(guard, [p.text for p in prompts], expected, seconds)
        served, plain = load.tokens / load.elapsed, (before + plain_rate()) / 2
        shares.append(served / plain)
        rates.append((served, plain))
        whole.add(load)
        left += still
    p50, p99 = np.percentile(whole.seconds, (50, 99))
    first, first_p99 = np.percentile(whole.first, (50, 99))
    asked = len(whole.seconds) + whole.lost + whole.broken_off
    return [
        Ratio(
            f"{STREAMS} streams: lost or mixed-up answers, slots never freed",
            whole.lost + whole.mixed_up + left,
            0,
            detail=f"{asked} requests in {whole.elapsed:.0f} s, {whole.broken_off} broken off by the client, "
            f"{whole.lost} lost, {whole.mixed_up} mixed up, {left} slots left",
        ),
        Ratio(
            f"{STREAMS} streams: share of answers that differ from what their prompt gets alone",
            (whole.different + whole.mixed_up) / max(1, len(whole.seconds)),
            0.01,
            detail=f"{whole.different} rounded otherwise of {len(whole.seconds)} complete answers",
        ),
        Ratio(
            "server tokens per second / plain generate",
            statistics.median(shares),
            0.8,
            at_least=True,
            detail="; ".join(f"{served:.0f} / {plain:.0f}" for served, plain in rates) + " tokens/s",
        ),
        Ratio(
            "p99 of the time to the first text / a batch of plain generate",
            float(first_p99) / statistics.median(batches),
            1.0,
            detail=f"first text p50 {first:.2f} s, p99 {first_p99:.2f} s; answer p50 {p50:.2f} s, p99 {p99:.2f} s; "
            f"plain batch {statistics.median(batches):.2f} s",
        ),
    ]


def _guard() -> Guard:
    """The embedded model behind a random interpreter: speed does not depend on what it finds."""
    model, tokenizer = load_model(ModelSettings(path="embedded", dtype="float32"))
    torch.manual_seed(1)
    point = ReadPoint(6, "last", template_fingerprint(tokenizer))
    return Guard(
        model,
        tokenizer,
        SafetySemanticInterpreter(
            InterpreterConfig(point, hidden_size(model), 32, base_fingerprint=model_fingerprint(model))
        ).eval(),
    )


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
