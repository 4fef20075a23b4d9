"""vLLM's own OpenAI server, guarded, as `lasa serve --engine vllm` starts it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import openai
import pytest
from engines import expect

LIMIT = 16
SMALL = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--kv-cache-memory-bytes", "67108864"]


@contextmanager
def server(case, *arguments, environment=None):
    """A running server's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [sys.executable, "-c", "from lasa.cli import main; main()", "serve", "--engine", "vllm"]
    command = [*start, "--model", str(case.model), "--interpreter", str(case.interpreter), "--port", str(port)]
    process = subprocess.Popen(
        [*command, *arguments, "--", *SMALL],
        env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(900):
            assert process.poll() is None, process.stdout.read()[-3000:]
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1)
                break
            except OSError:
                time.sleep(1)
        else:
            pytest.fail("the server did not start within a quarter of an hour")
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def address(embedded):
    with server(embedded, "--name", "embedded") as address:
        yield address


def test_32_concurrent_streams_say_what_the_transformers_guard_says(embedded, address):
    conversations = embedded.conversations[:32]
    answers, flags = expect(embedded, conversations, LIMIT)
    assert 0 < sum(flags) < 32

    async def stream(client, messages):
        chunks = await client.chat.completions.create(
            model="embedded", messages=messages, max_tokens=LIMIT, stream=True, stream_options={"include_usage": True}
        )
        text, reason, usage = "", None, None
        async for chunk in chunks:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
        return text, reason, usage.completion_tokens

    async def all_streams():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
            return await asyncio.gather(*(stream(client, one) for one in conversations))

    said = asyncio.run(all_streams())
    assert [(text, reason) for text, reason, _ in said] == [(one.text, one.finish_reason) for one in answers]
    own = [len(one.token_ids) + (one.finish_reason == "stop") for one in answers]
    assert [tokens for _, _, tokens in said] == own  # the condition is not counted


@pytest.mark.parametrize(
    "asked", [{"logprobs": True, "top_logprobs": 2}, {"extra_body": {"use_beam_search": True, "n": 2}}]
)
def test_what_shows_the_unguarded_model_is_refused(embedded, address, asked):
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0)
    with client, pytest.raises(openai.BadRequestError, match="guarded"):
        client.chat.completions.create(model="embedded", messages=embedded.conversations[0], **asked)


def test_plain_text_is_read_as_a_user_s_message(embedded, address):
    alone = [c for c in embedded.conversations if len(c) == 1]
    conversations = alone[:: len(alone) // 8][:8]  # the harmful ones come first
    answers, flags = expect(embedded, conversations, LIMIT)
    assert 0 < sum(flags) < 8
    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
        for (message,), expected in zip(conversations, answers, strict=True):
            text, options = message["content"], {"max_tokens": LIMIT, "temperature": 0}
            said = client.completions.create(model="embedded", prompt=text, **options)
            assert said.choices[0].text == expected.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": [5, 6, 7]}),
        ("/v1/completions", {"prompt": [[5, 6, 7]]}),
        ("/v1/chat/completions", {"kv_transfer_params": {"prompt_token_ids": [5, 6, 7]}}),
        ("/v1/chat/completions", {"add_generation_prompt": False}),
        ("/v1/chat/completions", {"truncate_prompt_tokens": 3}),
        ("/v1/chat/completions", {"repetition_penalty": 1e-46}),
    ],
    ids=str,
)
def test_what_the_guard_cannot_read_is_a_bad_request(embedded, address, path, body):
    if "chat" in path:
        body = {"messages": embedded.conversations[0], **body}
    request = urllib.request.Request(
        address + path, json.dumps({"model": "embedded", **body}).encode(), {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 400
    assert "guarded" in refused.value.read().decode()


def test_a_grammar_is_followed_by_flagged_answers_too(embedded, address):
    conversations = embedded.conversations[:8]
    assert any(expect(embedded, conversations, LIMIT)[1])
    wanted = {"structured_outputs": {"choice": ["left", "right"]}}
    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
        for messages in conversations:
            said = client.chat.completions.create(
                model="embedded", messages=messages, max_tokens=LIMIT, temperature=0, extra_body=wanted
            )
            assert said.choices[0].message.content in ("left", "right")
            assert said.choices[0].finish_reason == "stop"


def test_a_request_cannot_switch_the_guard_off_unless_the_operator_lets_it(embedded, address):
    conversations = embedded.conversations[:16]
    answers, flags = expect(embedded, conversations, LIMIT)
    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
        flagged = flags.index(True)
        answer = client.chat.completions.create(
            model="embedded",
            messages=conversations[flagged],
            max_tokens=LIMIT,
            extra_body={"vllm_xargs": {"lasa": "off"}},
        )
        assert answer.choices[0].message.content == answers[flagged].text
