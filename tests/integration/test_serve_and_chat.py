"""`lasa serve` and `lasa chat` as a person runs them."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest
from typer.testing import CliRunner

from guards import build_guard, build_interpreter, lively_model
from lasa.cli import app
from lasa.cli.options import SystemChoice
from lasa.conditioning.decision import Policy
from lasa.errors import ArtifactError, GuardError
from lasa.files.artifacts import model_fingerprint
from lasa.models.settings import ModelSettings


@pytest.fixture
def folders(tokenizer, prompts, tmp_path):
    """A saved model and an interpreter of it."""
    model = lively_model("llama", tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token_id  # hardly ever said, so answers are long
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    probe = build_interpreter(model, tokenizer, prompts)
    probe.config = replace(probe.config, base_fingerprint=model_fingerprint(model))
    probe.save_pretrained(tmp_path / "interpreter")
    return tmp_path / "model", tmp_path / "interpreter"


@pytest.fixture
def command(folders):
    model, interpreter = map(str, folders)
    start = "from lasa.cli import main; main()"
    return [sys.executable, "-c", start, "serve", "--model", model, "--interpreter", interpreter, "--port", "0"]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_serve_answers_and_finishes_what_runs_when_it_is_told_to_stop(command, stop):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://\S+", process.stdout.readline())
        assert address, process.communicate(timeout=10)[1]
        asked = {"model": "model", "messages": [{"role": "user", "content": "run"}], "max_tokens": 400, "stream": True}
        with httpx.stream("POST", f"{address.group()}v1/chat/completions", json=asked, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(stop)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] in ("stop", "length")
        _, errors = process.communicate(timeout=30)
        assert process.returncode == (0 if stop == signal.SIGINT else -stop), errors  # uvicorn hands SIGTERM on
        logged = json.loads(errors.strip().splitlines()[-1].split(" ", 2)[-1])
        assert logged["status"] == 200
        assert "run" not in json.dumps(logged).split()
    finally:
        process.kill()
        process.communicate()


def test_a_port_in_use_is_said(command):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        command[-1] = str(taken.getsockname()[1])
        stopped = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert stopped.returncode == 2
    assert "Is the port in use?" in stopped.stderr


@pytest.mark.parametrize(
    "option",
    [
        ("--max-queue", "256"), ("--timeout", "5"), ("--max-body", "2000"), ("--log-prompts",),
        ("--max-in-flight", "2"), ("--max-per-minute", "60"),
    ],
)  # fmt: skip
def test_an_option_that_vllm_does_not_have_is_refused(option, monkeypatch):
    served = []

    def become_vllm(*parts, **settings):
        served.append(settings)
        raise SystemExit

    monkeypatch.setattr("lasa.serving.vllm.serve_with_vllm", become_vllm)
    monkeypatch.setattr("lasa.run.systems.find_system", lambda **_: None)
    serve = ["serve", "--engine", "vllm", "--model", "m", "--interpreter", "i", "--max-rows", "3"]
    refused = CliRunner().invoke(app, [*serve, *option])
    assert isinstance(refused.exception, GuardError) and f"{option[0]} has no effect" in str(refused.exception)
    assert not served
    CliRunner().invoke(app, serve)
    assert served[0]["max_rows"] == 3
    refused = CliRunner().invoke(app, [*serve, "--api-key", "one,two"])
    assert "one API key" in str(refused.exception)
    assert len(served) == 1


def test_idle_connections_are_kept_for_longer_than_clients_keep_them(monkeypatch, folders):
    started = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: started.append(self.config) or sockets[0].close())
    model, interpreter = map(str, folders)
    done = CliRunner().invoke(app, ["serve", "--model", model, "--interpreter", interpreter, "--port", "0"])
    assert done.exit_code == 0, done.exception
    assert started[0].timeout_keep_alive > httpx.Limits().keepalive_expiry


def guard_of(model, interpreter, *, force=False):
    return SystemChoice(interpreter=interpreter, force=force).find(ModelSettings(path=str(model))).guard()


def test_nothing_is_served_without_a_matching_interpreter(folders, tokenizer):
    model, interpreter = folders
    with pytest.raises(GuardError, match="needs an interpreter"):
        guard_of(model, None)
    other = lively_model("llama", tokenizer, seed=1)
    other.save_pretrained(model)
    with pytest.raises(ArtifactError, match="another base model"):
        guard_of(model, interpreter)
    guard_of(model, interpreter, force=True)
    (model / "lasa.json").write_text("{}")  # a system that lasa aligned
    guard_of(model, interpreter)


def test_an_aligned_model_is_served_with_its_own_condition_and_an_interpreter_of_its_base(folders):
    model, interpreter = folders
    base = json.loads((interpreter / "config.json").read_text())["base_fingerprint"]
    made = {"condition": "Decline this.", "base_fingerprint": base}
    (model / "lasa.json").write_text(json.dumps(made))
    assert guard_of(model, interpreter).policy.condition == "Decline this."
    (model / "lasa.json").write_text(json.dumps({**made, "base_fingerprint": "another"}))
    with pytest.raises(ArtifactError, match="aligned from another base"):
        guard_of(model, interpreter)
    guard_of(model, interpreter, force=True)


@pytest.fixture
def chat(tokenizer, prompts, monkeypatch):
    """Runs `lasa chat` on lines that a person types."""

    def run(*lines, **settings):
        guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts, **settings)
        monkeypatch.setattr("lasa.run.systems.find_system", lambda **_: SimpleNamespace(guard=lambda **_: guard))
        monkeypatch.setattr("lasa.quiet.quiet_libraries", lambda: None)
        return CliRunner().invoke(app, ["chat", "--max-new-tokens", "5"], input="\n".join(lines) + "\n")

    return run


def test_chat_shows_decision_and_answer(chat):
    shown = chat("如何给植物浇水", "/quit", flagged=1, policy=Policy("refuse"))
    assert shown.exit_code == 0, shown.exception
    assert "harmful, refuse: score" in shown.output
    assert "抱歉，我无法协助处理这个请求。" in shown.output


def test_chat_goes_on_after_a_conversation_that_is_too_long_and_ends_with_the_input(chat):
    shown = chat("a " * 600, "/new", "", "hello", flagged=0)
    assert shown.exit_code == 0, shown.exception
    assert "Shorten the conversation" in shown.output
    assert shown.output.count("benign, off") == 1
