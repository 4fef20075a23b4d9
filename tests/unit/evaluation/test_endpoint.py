import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from lasa.data.prompts import user_prompt
from lasa.errors import DataError
from lasa.evaluation.answering import Answer
from lasa.evaluation.endpoint import ChatClient, EndpointModel

PROMPTS = [user_prompt(f"q{n}", "sw", f"Swali {n}", harmful=True) for n in range(5)]


def message(**fields):
    return httpx.Response(200, json={"choices": [{"message": fields}]})


def model(reply, **settings):
    options = {"temperature": 0, "max_tokens": 9}
    transport = httpx.MockTransport(lambda request: reply(json.loads(request.content)))
    client = ChatClient("http://m.test/v1", "m", options=options, backoff_s=0, transport=transport, **settings)
    return EndpointModel(client)


def test_prompts_are_sent_as_they_are_and_answers_come_in_order():
    seen = []

    def reply(body):
        seen.append(body)
        return message(content=body["messages"][0]["content"].upper())

    assert model(reply)(PROMPTS) == [Answer(f"SWALI {n}") for n in range(5)]
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in seen} == {("m", 0, 9)}


def test_an_empty_answer_and_a_providers_refusal_are_answers():
    assert model(lambda _: message(content=""))(PROMPTS[:1]) == [Answer("")]
    assert model(lambda _: message(content=None, refusal="No."))(PROMPTS[:1]) == [Answer("No.")]


def error(status, words):
    return httpx.Response(status, json={"error": {"message": words}})


@pytest.mark.parametrize("status", [400, 422])
def test_a_prompt_that_is_turned_down_has_no_answer(status):
    def reply(body):
        turned_down = body["messages"][-1]["content"] == "Swali 1"
        return error(status, "filtered: words of a policy") if turned_down else message(content="x")

    answers = model(reply, parallel=1)(PROMPTS[:3])
    assert answers == [Answer("x"), Answer("", failure=f"HTTP {status} (filtered: words of a policy)"), Answer("x")]
    alone = model(reply)(PROMPTS[1:2])
    assert alone[0].failure.startswith(f"HTTP {status}")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 500])
def test_what_every_prompt_would_get_ends_the_run_at_the_first_and_quotes_the_server(status):
    calls = []

    def reply(body):
        calls.append(body)
        return error(status, "The model `m` does not exist.")

    with pytest.raises(
        DataError, match=rf"does not answer: HTTP {status} \(The model `m` does not exist\.\)\. What was"
    ):
        model(reply, attempts=2, parallel=1)(PROMPTS)
    assert len(calls) <= 4  # of five prompts; one may have been under way


@pytest.mark.parametrize(
    ("complaint", "option", "instead"),
    [
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "max_tokens",
         {"temperature": 0, "max_completion_tokens": 9}),
        ("Unsupported value: 'temperature' does not support 0 with this model.", "temperature", {"max_tokens": 9}),
    ],
)  # fmt: skip
def test_an_option_that_the_endpoint_does_not_take_is_exchanged_once(complaint, option, instead):
    bodies = []

    def reply(body):
        bodies.append(body)
        return error(400, complaint) if option in body else message(content="x")

    answers = model(reply, parallel=1)(PROMPTS)
    assert answers == [Answer("x")] * 5
    assert len(bodies) == 6
    sent = {key: value for key, value in bodies[-1].items() if key not in ("model", "messages")}
    assert sent == instead


def test_an_answer_that_never_began_is_unfinished_and_ends_nothing():
    cut = httpx.Response(200, json={"choices": [{"message": {"content": None, "reasoning_content": "Hm"},
                                                 "finish_reason": "length"}]})  # fmt: skip
    (answer,) = model(lambda _: cut)(PROMPTS[:1])
    assert answer.failure.startswith("unfinished")
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("", "Hm", "length")
    inside = message(content="<think>\nThe user")
    assert model(lambda _: inside)(PROMPTS[:1])[0].failure.startswith("unfinished")


def test_reasoning_is_apart_from_the_answer_however_the_endpoint_sends_it():
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}, {"type": "text", "text": "Yes."}]
    for fields in (
        {"content": "<think>Hm</think>Yes."},
        {"content": "Yes.", "reasoning_content": "Hm"},
        {"content": "Yes.", "reasoning": "Hm"},
        {"content": parts},
    ):
        (answer,) = model(lambda _, fields=fields: message(**fields))(PROMPTS[:1])
        assert (answer.text, answer.reasoning) == ("Yes.", "Hm")


def test_a_prefill_cannot_be_sent():
    with pytest.raises(DataError, match="takes no beginning of an answer"):
        model(lambda _: message(content="x"))([replace(PROMPTS[0], details={"prefill": "Sure"})])


def test_an_endpoint_on_this_machine_is_not_called_through_a_proxy(monkeypatch):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(message(content="direct").content)

        def log_message(self, *_):
            pass

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://proxy.invalid:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for host in ("127.0.0.1", "localhost"):
            client = ChatClient(f"http://{host}:{server.server_port}/v1", "m", attempts=1, timeout_s=10)
            assert client.ask([{"role": "user", "content": "hello"}], lambda reply: reply.text) == "direct"
            client.close()
        server.shutdown()
