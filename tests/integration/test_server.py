import asyncio
import contextlib
import json
import logging
import socket
import subprocess
import threading
import time

import httpx
import openai
import pytest

from guards import CONDITION, build_guard, conversations, lively_model
from lasa.conditioning.decision import Policy
from lasa.errors import GuardError, ModelError
from lasa.guard.refusals import REFUSALS
from lasa.models.generation import GenerationSettings
from lasa.serving.app import ServerSettings, create_app
from lasa.serving.scheduler import FAILED
from servers import serving, slow_down

SURE = {"role": "assistant", "content": "sure"}
SHORT = {"model": "tiny", "max_tokens": 10}


@pytest.fixture(scope="module")
def lively(tokenizer):
    return lively_model("llama", tokenizer)


@pytest.fixture
def guard(lively, tokenizer, prompts):
    return build_guard(lively, tokenizer, prompts)


@pytest.fixture
def served(guard):
    with serving(guard) as running:
        yield running


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def body(prompt, **rest):
    return {**SHORT, "messages": list(prompt.messages), **rest}


def post(served, **rest):
    return httpx.post(f"{served.url}/v1/chat/completions", json=rest, timeout=30)


# the openai client


def test_answers_and_decisions_are_the_guards(client, guard, prompts):
    expected = guard.generate(conversations(prompts), GenerationSettings(max_new_tokens=10))
    actions = set()
    for prompt, one in zip(prompts, expected, strict=True):
        answer = client.chat.completions.create(**body(prompt), extra_body={"lasa": True})
        assert answer.choices[0].message.content == one.answer.text
        assert answer.choices[0].finish_reason == one.answer.finish_reason
        assert answer.lasa["action"] == one.decision.action
        assert answer.lasa["score"] == pytest.approx(one.decision.score, abs=1e-4)
        actions.add(one.decision.action)
    assert actions == {"off", "condition"}


def test_a_stream_is_the_answer_in_pieces(client, guard, prompts):
    for prompt in prompts[:4]:
        whole = client.chat.completions.create(**body(prompt))
        chunks = list(
            client.chat.completions.create(
                **body(prompt), stream=True, stream_options={"include_usage": True}, extra_body={"lasa": True}
            )
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(pieces) == whole.choices[0].message.content
        assert sum(map(bool, pieces)) > 1
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[0].lasa["action"] in ("off", "condition")
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
        assert chunks[-1].usage == whole.usage


def test_usage_counts_neither_condition_nor_prefill(client, guard, prompts):
    messages = [*prompts[0].messages, {"role": "assistant", "content": "Sure, here is"}]
    usage = client.chat.completions.create(model="tiny", messages=messages, max_tokens=10).usage
    assert usage.prompt_tokens == len(guard.question(prompts[0].messages).rendered.token_ids)
    assert usage.completion_tokens <= 10
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_several_choices_with_a_seed_repeat(client, prompts):
    def draw(seed):
        answer = client.chat.completions.create(**body(prompts[0]), n=3, seed=seed, temperature=2.0)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first = draw(5)
    assert len(set(first)) == 3
    assert draw(5) == first != draw(6)


def test_several_choices_as_a_stream(client, prompts):
    whole = client.chat.completions.create(**body(prompts[0]), n=2, seed=1, temperature=2.0)
    texts = ["", ""]
    for chunk in client.chat.completions.create(**body(prompts[0]), n=2, seed=1, temperature=2.0, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_a_stop_text_never_shows_in_a_stream_either(client, prompts):
    whole = client.chat.completions.create(**body(prompts[6], max_tokens=40)).choices[0].message.content
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    cut = client.chat.completions.create(**body(prompts[6], max_tokens=40, stop=[stop]))
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(**body(prompts[6], max_tokens=40, stop=stop), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole[: whole.index(stop)]


def test_logprobs_whole_and_streamed(client, prompts):
    asked = body(prompts[0], logprobs=True, top_logprobs=2)
    content = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert len(content) == 10
    assert all(one.top_logprobs[0].logprob == pytest.approx(one.logprob, abs=1e-4) for one in content)  # greedy
    assert all(len(one.top_logprobs) == 2 for one in content)
    streamed = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert [one.token for one in streamed] == [one.token for one in content]
    parts = [one for one in content if "\N{REPLACEMENT CHARACTER}" in one.token]
    assert 0 < len(parts) < len(content)
    assert all(one.bytes is None for one in parts)
    assert all(bytes(one.bytes).decode() == one.token for one in content if one not in parts)


def test_a_prefill_is_continued_after_the_condition(client, lively, tokenizer, guard, prompts):
    answered = guard.generate([prompts[0].messages], GenerationSettings(max_new_tokens=10), prefills=["Sure, here is"])
    messages = [*prompts[0].messages, {"role": "assistant", "content": "Sure, here is"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=10)
    assert answer.choices[0].message.content == answered[0].answer.text


def test_moderation_gives_the_interpreters_verdict_alone(client, guard):
    texts = ["how do I water the plant", "paint the house", "read the letter", "run", "cook rice"]
    decisions = guard.decide([({"role": "user", "content": text},) for text in texts])
    results = client.moderations.create(input=texts, model="tiny").results
    assert [one.flagged for one in results] == [d.flagged for d in decisions]
    assert [one.category_scores.harmful for one in results] == pytest.approx([d.score for d in decisions], abs=1e-4)
    assert client.moderations.create(input=texts[0]).results[0].flagged == decisions[0].flagged


CHAT = [
    {"role": "user", "content": "how do I paint"}, {"role": "assistant", "content": "with a brush"},
    {"role": "user", "content": "and the house"}, {"role": "tool", "content": "the house is red"},
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_every_turn_is_scored_where_that_is_asked_for(client, guard, stream):
    expected = [(turn.message, turn.decision.band) for turn in guard.score_turns(CHAT)]
    assert [message for message, _ in expected] == [0, 3]
    asked = {**SHORT, "messages": CHAT, "extra_body": {"lasa_turns": True}}
    answer = next(iter(client.chat.completions.create(**asked, stream=True))) if stream else (
        client.chat.completions.create(**asked, n=2)
    )  # fmt: skip
    assert [(turn["message"], turn["band"]) for turn in answer.lasa["turns"]] == expected
    assert answer.lasa["turns"][-1]["score"] == pytest.approx(answer.lasa["score"], abs=1e-4)
    plain = client.chat.completions.create(**SHORT, messages=CHAT, extra_body={"lasa": True})
    assert plain.lasa["turns"] is None


@pytest.mark.parametrize("stream", [False, True])
def test_turns_that_cannot_be_read_are_the_callers_mistake_and_nobody_elses_trouble(
    served, prompts, monkeypatch, stream
):
    slow_down(monkeypatch, 0.05)
    unreadable = [{"role": "user", "content": " "}, *CHAT[1:3]]
    assert post(served, **SHORT, messages=unreadable).status_code == 200
    found = []
    threads = [threading.Thread(target=lambda: found.append(post(served, **body(prompts[0])))) for _ in range(4)]
    for thread in threads:
        thread.start()
    answer = post(served, **SHORT, messages=unreadable, lasa_turns=True, stream=stream)
    for thread in threads:
        thread.join()
    assert answer.status_code == 400
    assert [one.status_code for one in found] == [200] * 4
    assert served.scheduler.failure is None


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "lasa"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.models.retrieve("gpt")


def test_concurrent_requests_get_their_own_answers(served, guard, prompts):
    expected = [
        one.answer.text for one in guard.generate(conversations(prompts), GenerationSettings(max_new_tokens=10))
    ]
    found = [""] * (3 * len(prompts))

    def ask(index):
        answer = post(served, **body(prompts[index % len(prompts)]))
        found[index] = answer.json()["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected * 3


def test_curl_talks_to_it(served):
    asked = json.dumps({**SHORT, "messages": [{"role": "user", "content": "你好"}]})
    command = ["curl", "-sS", "-H", "Content-Type: application/json", "-d", asked, f"{served.url}/v1/chat/completions"]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout)
    assert answer["choices"][0]["message"]["role"] == "assistant"


# it never fails open


def test_a_guard_that_breaks_gives_503_and_no_answer_until_it_reads_again(served, prompts, monkeypatch):
    from contextlib import nullcontext

    with monkeypatch.context() as patch:
        patch.setattr("lasa.serving.batch.observe_layers", lambda *_: nullcontext())
        for stream in (False, True):
            answer = post(served, **body(prompts[0], stream=stream))
            assert answer.status_code == 503
            assert answer.json()["error"]["type"] == "guard_error"
        assert httpx.post(f"{served.url}/v1/moderations", json={"input": "hello"}).status_code == 503
        assert httpx.get(f"{served.url}/health").json()["status"] == "failing"
    assert httpx.get(f"{served.url}/health").json()["status"] == "ok"  # it was tried out again; no request was needed
    assert post(served, **body(prompts[0])).status_code == 200


@pytest.mark.parametrize("error", [GuardError, ModelError, RuntimeError])
def test_what_the_error_was_is_for_the_log_and_not_for_the_caller(served, prompts, monkeypatch, caplog, error):
    def broken(_):
        raise error("something within")

    monkeypatch.setattr(served.guard.interpreter, "probability", broken)
    with caplog.at_level(logging.ERROR, "lasa.serving"):
        for rest in ({}, {"stream": True}, {"lasa_turns": True}, {"messages": [*prompts[0].messages, SURE]}):
            answer = post(served, **{**body(prompts[0]), **rest})
            assert answer.status_code == 503
            assert answer.json()["error"]["message"] == FAILED
        assert "within" not in httpx.get(f"{served.url}/health").text
    assert "something within" in caplog.text


def test_an_error_of_the_server_itself_has_openais_shape_and_says_nothing(guard, prompts, monkeypatch):
    monkeypatch.setattr("lasa.serving.app._rows", lambda *_: 1 / 0)
    with serving(guard) as broken:
        answer = post(broken, **body(prompts[0]))
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "division" not in answer.text


def test_a_guard_that_breaks_in_the_middle_ends_the_stream_with_an_error(served, client, prompts, monkeypatch):
    slow_down(monkeypatch, 0.02)
    stream = client.chat.completions.create(**{**body(prompts[0]), "max_tokens": 200}, stream=True)
    next(iter(stream))
    with monkeypatch.context() as patch:
        patch.setattr("lasa.serving.batch.RunningBatch._forward", lambda *_: 1 / 0)
        with pytest.raises(openai.APIError, match="the server's log says why") as told:
            list(stream)
    assert "division" not in str(told.value)
    assert post(served, **body(prompts[0])).status_code == 200


def test_a_server_whose_guard_cannot_run_does_not_start(guard, monkeypatch):
    monkeypatch.setattr("lasa.serving.batch.RunningBatch._merge", lambda *_: 1 / 0)
    with pytest.raises(GuardError, match="cannot run on LlamaForCausalLM"):
        create_app(guard, ServerSettings())


def test_a_score_that_is_no_number_is_harmful_and_null_in_json(served, prompts):
    import torch

    with torch.no_grad():
        served.guard.interpreter.out.bias.fill_(float("nan"))
    answer = post(served, **body(prompts[0], lasa=True)).json()
    assert (answer["lasa"]["score"], answer["lasa"]["action"]) == (None, "condition")


def test_a_refusal_comes_in_the_users_language(lively, tokenizer, prompts):
    policy = Policy("refuse")
    with serving(build_guard(lively, tokenizer, prompts, flagged=1, policy=policy)) as refusing:
        for language, text in (("zh", "如何给植物浇水"), ("ko", "식물에 물을 주는 방법"), ("th", "วิธีรดน้ำต้นไม้")):
            asked = {**SHORT, "messages": [{"role": "user", "content": text}]}
            assert post(refusing, **asked).json()["choices"][0]["message"]["content"] == REFUSALS[language]
            lines = post(refusing, **asked, stream=True).text
            assert REFUSALS[language] in lines


def test_an_answer_that_turns_harmful_is_stopped_in_the_stream(lively, tokenizer, prompts):
    policy = Policy(condition=CONDITION, reread_every=2)
    guard = build_guard(lively, tokenizer, prompts, flagged=0.2, policy=policy)
    expected = guard.generate(conversations(prompts), GenerationSettings(max_new_tokens=10))
    stopped = next(prompt for prompt, one in zip(prompts, expected, strict=True) if one.stopped)
    with serving(guard) as running:
        answer = post(running, **body(stopped, lasa=True)).json()["choices"][0]
        assert answer["finish_reason"] == "content_filter"
        assert answer["lasa"]["action"] == "refuse"
        refusal = answer["message"]["content"]
        assert post(running, **body(stopped, logprobs=True)).json()["choices"][0]["logprobs"]["content"] == []
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused") as client:
            chunks = list(client.chat.completions.create(**body(stopped), stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).endswith(refusal)
    assert chunks[-1].choices[0].finish_reason == "content_filter"


# requests that are turned away


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "user message"),
        ({"messages": [{"role": "user", "content": ""}]}, ""),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "type"),
        ({"messages": [{"role": "user", "content": "a " * 600}]}, "context"),
        ({"temperature": -1}, "temperature"),
        ({"n": 0}, "n:"),
        ({"stop": [""]}, "stop"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"frequency_penalty": 1.5}, "frequency_penalty"),
        ({"messages": "hello"}, "messages"),
        ({"lasa_turns": True, "messages": 33 * [*CHAT[:2]] + CHAT[:1]}, "more than 32 turns"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(served, prompts, change, message):
    answer = post(served, **{**body(prompts[0]), **change})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_half_a_character_in_a_tool_call_is_no_server_error(served, prompts):
    call = {"role": "assistant", "tool_calls": [{"arguments": "\ud800"}]}
    asked = json.dumps(body(prompts[0], messages=[*prompts[0].messages, call, *prompts[0].messages]))
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{served.url}/v1/chat/completions", content=asked, headers=headers, timeout=30)
    assert answer.status_code == 200


def test_an_unknown_model_is_not_found(served, prompts):
    assert post(served, **{**body(prompts[0]), "model": "gpt"}).status_code == 404


def test_a_request_that_is_too_large_is_turned_away(guard):
    with serving(guard, max_body=2000) as small:
        large = {**SHORT, "messages": [{"role": "user", "content": "x" * 3000}]}
        assert post(small, **large).status_code == 413

        def pieces():
            for _ in range(30):
                yield b"x" * 100

        answer = httpx.post(f"{small.url}/v1/chat/completions", content=pieces())
        assert answer.status_code == 413


def test_an_api_key_is_asked_for_where_there_is_one(guard, prompts):
    with serving(guard, api_key="secret") as locked:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            for path in ("/v1/models", "/metrics", "/openapi.json"):
                assert httpx.get(locked.url + path, headers=headers).status_code == 401
            answer = httpx.post(f"{locked.url}/v1/chat/completions", json=body(prompts[0]), headers=headers)
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{locked.url}/health").status_code == 200
        assert httpx.get(f"{locked.url}/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
        with openai.OpenAI(base_url=f"{locked.url}/v1", api_key="secret") as client:
            assert client.chat.completions.create(**body(prompts[0])).choices


def test_every_key_has_its_own_requests_a_minute(guard, prompts):
    with serving(guard, api_key="one, two", max_per_minute=2) as limited:

        def ask(key, path="chat/completions"):
            headers = {"Authorization": f"Bearer {key}"}
            return httpx.post(f"{limited.url}/v1/{path}", json=body(prompts[0]), headers=headers, timeout=30)

        assert [ask("one").status_code for _ in range(2)] == [200, 200]
        for path in ("chat/completions", "completions", "responses", "moderations"):
            answer = ask("one", path)
            assert answer.status_code == 429
            assert 0 < int(answer.headers["retry-after"]) <= 60
            error = answer.json()["error"]
            assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "rate_limit_exceeded", None)
            assert "2 requests a minute" in error["message"]
        assert ask("two").status_code == 200
        assert ask("three").status_code == 401
        headers = {"Authorization": "Bearer one"}
        assert {httpx.get(f"{limited.url}/v1/models", headers=headers).status_code for _ in range(4)} == {200}
        with (
            openai.OpenAI(base_url=f"{limited.url}/v1", api_key="one", max_retries=0) as client,
            pytest.raises(openai.RateLimitError, match="try again in"),
        ):
            client.chat.completions.create(**body(prompts[0]))


@pytest.mark.parametrize("stream", [False, True])
def test_every_key_has_its_own_requests_at_the_same_time(guard, prompts, monkeypatch, stream):
    slow_down(monkeypatch, 0.02)
    with serving(guard, api_key="one,two", max_in_flight=1) as limited:

        def ask(key, **rest):
            headers = {"Authorization": f"Bearer {key}"}
            asked = body(prompts[6], **rest)
            return httpx.post(f"{limited.url}/v1/chat/completions", json=asked, headers=headers, timeout=30)

        thread = threading.Thread(target=ask, args=("one",), kwargs={"max_tokens": 60, "stream": stream})
        thread.start()
        limited.wait_for(lambda: limited.scheduler.load == (1, 0))
        answer = ask("one")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert "1 requests at the same time" in answer.json()["error"]["message"]
        assert ask("two").status_code == 200
        thread.join()
        assert [ask("one").status_code, ask("one", max_tokens=0).status_code, ask("one").status_code] == [200, 400, 200]


def test_without_keys_all_callers_have_one_limit(guard, prompts):
    with serving(guard, max_per_minute=1) as limited:
        assert post(limited, **body(prompts[0])).status_code == 200
        assert post(limited, **body(prompts[0])).status_code == 429


def test_a_full_queue_is_429_with_a_time_to_wait(guard, prompts, monkeypatch):
    slow_down(monkeypatch, 0.02)
    with serving(guard, max_rows=1, max_queue=1) as busy:
        threads = [
            threading.Thread(target=post, args=(busy,), kwargs=body(prompts[6], max_tokens=60)) for _ in range(2)
        ]
        threads[0].start()
        busy.wait_for(lambda: busy.scheduler.load == (1, 0))
        threads[1].start()
        busy.wait_for(lambda: busy.scheduler.load == (1, 1))
        answer = post(busy, **body(prompts[0]))
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        for thread in threads:
            thread.join()
        assert post(busy, **body(prompts[0])).status_code == 200


def test_a_cancelled_stream_frees_its_slot(guard, prompts, monkeypatch):
    slow_down(monkeypatch, 0.02)
    with serving(guard, max_rows=1) as busy:
        for stream in (True, False):
            asked = body(prompts[6], max_tokens=200, stream=stream)
            with httpx.Client() as client:
                if stream:
                    with client.stream("POST", f"{busy.url}/v1/chat/completions", json=asked) as response:
                        next(response.iter_lines())
                else:
                    with pytest.raises(httpx.ReadTimeout):
                        client.post(f"{busy.url}/v1/chat/completions", json=asked, timeout=0.2)
            busy.wait_for(lambda: busy.scheduler.load == (0, 0), seconds=1.5)
            started = time.monotonic()
            assert post(busy, **body(prompts[0], max_tokens=1)).status_code == 200
            assert time.monotonic() - started < 1.5


def test_a_client_that_leaves_before_the_first_chunk_frees_its_slot(guard, prompts, monkeypatch):
    slow_down(monkeypatch, 0.05)
    app = create_app(guard, ServerSettings(model_name="tiny", max_new_tokens=200))
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": "/v1/chat/completions", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    asked = iter([json.dumps(body(prompts[6], max_tokens=200, stream=True)).encode()])

    async def receive():
        if (given := next(asked, None)) is not None:
            return {"type": "http.request", "body": given}
        await asyncio.sleep(60)

    async def send(message):
        raise OSError("the connection is gone")

    with contextlib.suppress(Exception):
        asyncio.run(app(scope, receive, send))
    scheduler = app.state.scheduler
    try:
        end = time.monotonic() + 5
        while scheduler.load != (0, 0) and time.monotonic() < end:
            time.sleep(0.01)
        assert scheduler.load == (0, 0)
        assert scheduler.metrics.cancelled._value.get() == 1
    finally:
        scheduler.close(20)


def test_a_body_that_does_not_arrive_is_408(served, monkeypatch):
    monkeypatch.setattr("lasa.serving.gate.BODY_SECONDS", 0.3)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1])), timeout=20) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_request_that_takes_too_long_is_given_up(guard, prompts, monkeypatch):
    slow_down(monkeypatch, 0.05)
    with serving(guard, timeout=0.5) as hasty:
        assert post(hasty, **body(prompts[6], max_tokens=200)).status_code == 504
        lines = post(hasty, **body(prompts[6], max_tokens=200, stream=True)).text
        assert '"code": "timeout"' in lines
        assert "[DONE]" not in lines
        hasty.wait_for(lambda: hasty.scheduler.load == (0, 0))


def test_stopping_the_server_finishes_what_runs(guard, prompts, monkeypatch):
    slow_down(monkeypatch, 0.02)
    lines = {}
    with serving(guard) as leaving:

        def ask(stream):
            lines[stream] = post(leaving, **body(prompts[6], max_tokens=60, stream=stream)).text

        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False)]
        for thread in threads:
            thread.start()
        leaving.wait_for(lambda: leaving.scheduler.load[0] == 2)
    for thread in threads:
        thread.join()
    assert lines[True].rstrip().endswith("[DONE]")
    assert json.loads(lines[False])["choices"][0]["finish_reason"] in ("stop", "length")
    with pytest.raises(GuardError, match="shutting down"):
        leaving.scheduler.submit(None)


# what is seen from outside


def test_metrics_count_requests_decisions_and_tokens(served, prompts):
    for prompt in prompts[:3]:
        post(served, **body(prompt))
    post(served, **{**body(prompts[0]), "model": "gpt"})
    text = httpx.get(f"{served.url}/metrics").text
    assert 'lasa_requests_total{endpoint="/v1/chat/completions",status="200"} 3.0' in text
    assert 'lasa_requests_total{endpoint="/v1/chat/completions",status="404"} 1.0' in text
    decisions = [float(line.split()[-1]) for line in text.splitlines() if line.startswith("lasa_decisions_total")]
    assert sum(decisions) == 3
    assert "lasa_rows_running 0.0" in text


@pytest.mark.parametrize("log_prompts", [False, True])
def test_logs_hold_the_decision_and_no_text_unless_asked_for(guard, caplog, log_prompts):
    with serving(guard, log_prompts=log_prompts) as running, caplog.at_level(logging.INFO, "lasa.serving"):
        asked = {**SHORT, "messages": [{"role": "user", "content": "unmistakable"}]}
        text = post(running, **asked).json()["choices"][0]["message"]["content"]
        post(running, **asked, stream=True)
        running.wait_for(lambda: len(caplog.records) == 2)
    for logged in caplog.records:
        line = json.loads(logged.message)
        assert {"status", "seconds", "score", "action", "completion_tokens"} <= set(line)
        assert ("unmistakable" in logged.message) == log_prompts
        assert (line.get("answers") == [text]) == log_prompts
