"""The arguments with which vLLM is started, what it is not started for, and a server of one's own."""

import json
import os
import urllib.error
import urllib.request
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from lasa.conditioning.decision import Policy
from lasa.errors import GuardError
from lasa.guard.system import System
from lasa.models.settings import ModelSettings
from lasa.models.soft_condition import SOFT_CONDITION
from lasa.serving.vllm import guard_arguments, running_vllm, serve_with_vllm, vllm_arguments

SETTINGS = {"name": "mine", "max_rows": 64, "max_new_tokens": 100, "temperature": 0.0}
PLACE = {"host": "127.0.0.1", "port": 8000}

FAKE_VLLM = """
import http.server, json, os, sys
if "--fail" in sys.argv:
    sys.exit("This engine cannot be guarded.")
names = ("VLLM_API_KEY", "VLLM_PLUGINS", "VLLM_USE_V2_MODEL_RUNNER")
told = json.dumps({"arguments": sys.argv[1:], "pid": os.getpid(), **{name: os.environ.get(name) for name in names}})
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(told.encode())
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def system(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    model = ModelSettings(path=str(tmp_path), dtype="bfloat16")
    return System("mine", model, Path("interpreter"), guarded=True, condition="Refuse this.")


@pytest.fixture
def run_fake(system, tmp_path, monkeypatch):
    """A server of one's own where vLLM is a few lines."""
    (tmp_path / "fake_vllm.py").write_text(FAKE_VLLM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("lasa.serving.vllm.SERVER", "fake_vllm")
    monkeypatch.setattr("lasa.serving.vllm.find_spec", lambda package: True)

    def run(served, *extra):
        return running_vllm(served, log=tmp_path / "out" / "vllm.log", extra=extra, **SETTINGS)

    return run


def told(url):
    with urllib.request.urlopen(url) as response:
        return json.load(response)


def test_the_model_is_served_as_it_was_read(system):
    value = dict(pairwise(vllm_arguments(system.model, **SETTINGS, **PLACE)))
    assert value["--model"] == system.model.path
    assert value["--dtype"] == "bfloat16"
    assert value["--tokenizer-mode"] == "hf"
    assert json.loads(value["--override-generation-config"]) == {"temperature": 0.0, "max_new_tokens": 100}


def test_the_guard_is_in_the_arguments(system):
    value = dict(pairwise(guard_arguments(system, Policy())))
    lasa = {"interpreter": str(Path("interpreter").resolve()), "condition": "Refuse this.", "force": False}
    assert json.loads(value["--additional-config"]) == {"lasa": {**lasa, "answered": [], "read_answers": False}}
    assert value["--logits-processors"] == "lasa_vllm.processor_v1:ConditionProcessor"
    assert value["--scheduler-cls"] == "lasa_vllm.scheduler.guarded_scheduler"
    assert "lasa_vllm.processor_v2:ConditionProcessor" in guard_arguments(system, Policy(), runner="1")


def test_kinds_that_are_answered_and_answers_that_are_read_go_along(system):
    policy = Policy(categories={"privacy": "off"}, reread_every=1)
    value = dict(pairwise(guard_arguments(system, policy)))
    lasa = json.loads(value["--additional-config"])["lasa"]
    assert (lasa["answered"], lasa["read_answers"]) == (["privacy"], True)


@pytest.mark.parametrize(
    "policy",
    [Policy("refuse"), Policy(controversial="off"), Policy(categories={"hate": "refuse"}), Policy(uncovered="log")],
)
def test_actions_that_vllm_does_not_have_are_refused(system, policy):
    with pytest.raises(GuardError, match="--engine lasa"):
        guard_arguments(system, policy)


def test_in_vllm_answers_are_read_at_every_token(system):
    with pytest.raises(GuardError, match="--reread-every is 0 or 1 there"):
        guard_arguments(system, Policy(reread_every=4))


def test_an_adapter_that_acts_behind_the_condition_is_refused_at_the_start(system, tmp_path):
    (tmp_path / "config.json").unlink()
    (tmp_path / "adapter_config.json").write_text(json.dumps({"alora_invocation_tokens": [1, 2]}))
    with pytest.raises(GuardError, match="acts only behind the condition, which vLLM does not do"):
        vllm_arguments(system.model, **SETTINGS, **PLACE)


def test_adapters_and_soft_conditions_are_refused(system):
    (Path(system.model.path) / SOFT_CONDITION).touch()
    with pytest.raises(GuardError, match="soft condition"):
        vllm_arguments(system.model, **SETTINGS, **PLACE)
    (Path(system.model.path) / "config.json").rename(Path(system.model.path) / "adapter_config.json")
    with pytest.raises(GuardError, match="adapter"):
        vllm_arguments(system.model, **SETTINGS, **PLACE)


def test_without_vllm_it_says_what_to_install(system, monkeypatch, tmp_path):
    monkeypatch.setattr("lasa.serving.vllm.find_spec", lambda package: None)
    with pytest.raises(GuardError, match="lasa-vllm"):
        serve_with_vllm(system, Policy(), api_key=None, extra=[], **SETTINGS, **PLACE)
    with (
        pytest.raises(GuardError, match="vllm cannot be imported"),
        running_vllm(replace(system, guarded=False), log=tmp_path / "log", extra=[], **SETTINGS),
    ):
        pass


def test_serving_becomes_vllm_with_the_guard_and_the_key(system, monkeypatch):
    started = []
    monkeypatch.setattr("lasa.serving.vllm.find_spec", lambda package: True)
    monkeypatch.setattr("lasa.serving.vllm.os.execve", lambda *given: started.append(given))
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    extra = ["--tensor-parallel-size", "2"]
    serve_with_vllm(replace(system, forced=True), Policy(), api_key="secret", extra=extra, **SETTINGS, **PLACE)
    [(_, command, environment)] = started
    assert "secret" not in " ".join(command)  # other users of the machine see it
    assert (environment["VLLM_API_KEY"], environment["VLLM_USE_V2_MODEL_RUNNER"]) == ("secret", "0")
    assert command[-2:] == ["--tensor-parallel-size", "2"]
    assert json.loads(dict(pairwise(command))["--additional-config"])["lasa"]["force"] is True


def test_a_server_of_ones_own_is_guarded_and_ends_with_the_context(run_fake, system):
    with run_fake(system, "--seed", "1") as (url, key):
        found = told(url)
        assert key == found["VLLM_API_KEY"]
        assert found["VLLM_PLUGINS"] is None
        assert {"--additional-config", "--logits-processors", "--scheduler-cls"} < set(found["arguments"])
        assert found["arguments"][-2:] == ["--seed", "1"]
    with pytest.raises(urllib.error.URLError):
        told(url)
    with pytest.raises(ProcessLookupError):
        os.kill(found["pid"], 0)


def test_a_system_without_a_guard_is_served_without_the_plugin(run_fake, system):
    with run_fake(replace(system, guarded=False)) as (url, _):
        found = told(url)
    assert found["VLLM_PLUGINS"] == ""
    assert not {"--additional-config", "--logits-processors", "--scheduler-cls"} & set(found["arguments"])


def test_a_server_that_does_not_start_says_why(run_fake, system, tmp_path):
    with pytest.raises(GuardError, match=r"This engine cannot be guarded.*vllm\.log"), run_fake(system, "--fail"):
        pass
