"""Clients for the load test, in a process of their own: streams that are kept open, read, or broken off."""

import asyncio
import json
import random
import time
from dataclasses import dataclass, field

import httpx


@dataclass
class Load:
    """What the clients saw.

    Attributes:
        seconds: Time from start to stop of each complete answer.
        first: Time to its first text.
        lost: Requests that failed or ended without their last line.
        broken_off: Requests that the client itself gave up.
        mixed_up: Answers that are another prompt's.
        different: Answers that are no prompt's: greedy ties that rounding decided otherwise.
        tokens: Tokens of the complete answers.
        elapsed: Length of the test in seconds.
    """

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    lost: int = 0
    broken_off: int = 0
    mixed_up: int = 0
    different: int = 0
    tokens: int = 0
    elapsed: float = 0.0

    def add(self, other: "Load") -> None:
        """Count another test as part of this one."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def run_clients(
    url: str, prompts: list[str], expected: list[str], max_tokens: int, streams: int, seconds: float
) -> Load:
    """Keep so many streams open for so long; every answer is compared with the one its prompt must get."""
    return asyncio.run(_run(url, prompts, expected, max_tokens, streams, seconds))


async def _run(
    url: str, prompts: list[str], expected: list[str], max_tokens: int, streams: int, seconds: float
) -> Load:
    load, started = Load(), time.monotonic()
    limits = httpx.Limits(max_connections=streams)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def one_after_the_other(number: int) -> None:
            draw = random.Random(number)
            while time.monotonic() - started < seconds:
                index = draw.randrange(len(prompts))
                try:
                    await _ask(client, prompts[index], index, expected, max_tokens, load, draw.random() < 0.05)
                except (httpx.HTTPError, KeyError, ValueError):
                    load.lost += 1

        await asyncio.gather(*(one_after_the_other(number) for number in range(streams)))
    load.elapsed = time.monotonic() - started
    return load


async def _ask(
    client: httpx.AsyncClient, prompt: str, index: int, expected: list[str], max_tokens: int, load: Load, gives_up: bool
) -> None:
    asked = {
        "model": "load",
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "max_tokens": max_tokens,
        "stream_options": {"include_usage": True},
    }
    started, first, text, tokens, done = time.monotonic(), None, "", 0, False
    async with client.stream("POST", "/v1/chat/completions", json=asked) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            done = done or line == "data: [DONE]"
            if done or not line.startswith("data: "):
                continue
            chunk = json.loads(line[6:])
            for choice in chunk["choices"]:
                text += choice["delta"].get("content", "")
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            if text and first is None:
                first = time.monotonic() - started
                if gives_up:
                    load.broken_off += 1
                    return
    if not done:
        load.lost += 1
        return
    load.seconds.append(time.monotonic() - started)
    load.first.append(first or load.seconds[-1])
    load.tokens += tokens
    if text != expected[index]:
        if text in expected:
            load.mixed_up += 1
        else:
            load.different += 1
