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


@pytest.mark.parametrize("status", [400, 422])
def test_a_prompt_that_is_turned_down_has_no_answer(status):
    assert model(lambda _: httpx.Response(status))(PROMPTS[:1]) == [Answer("", failure=f"HTTP {status}")]


@pytest.mark.parametrize("status", [401, 404, 500])
def test_an_endpoint_that_does_not_answer_is_an_error(status):
    with pytest.raises(DataError, match=rf"does not answer: HTTP {status}\. What was answered is kept"):
        model(lambda _: httpx.Response(status), attempts=2)(PROMPTS)


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
            assert client.ask([{"role": "user", "content": "hello"}], str) == "direct"
            client.close()
        server.shutdown()
