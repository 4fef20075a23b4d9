"""The arguments with which vLLM is started, and what it is not started for."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from lasa.conditioning import Policy
from lasa.errors import GuardError
from lasa.serving.loading import Parts
from lasa.serving.vllm import serve_with_vllm, vllm_arguments
from lasa.soft_condition import SOFT_CONDITION

SETTINGS = {
    "name": "mine",
    "host": "127.0.0.1",
    "port": 8000,
    "max_rows": 64,
    "max_new_tokens": 100,
    "temperature": 0.0,
    "force": False,
}


@pytest.fixture
def parts(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    return Parts(str(tmp_path), Path("interpreter"), "Refuse this.", False, "auto", "auto")


def test_the_guard_is_in_the_arguments(parts):
    given = vllm_arguments(parts, Policy(), **SETTINGS)
    value = dict(pairwise(given))
    lasa = {"interpreter": str(Path("interpreter").resolve()), "condition": "Refuse this.", "force": False}
    assert json.loads(value["--additional-config"]) == {"lasa": lasa}
    assert value["--logits-processors"] == "lasa_vllm.processor_v1:ConditionProcessor"
    assert value["--scheduler-cls"] == "lasa_vllm.scheduler.guarded_scheduler"
    v2 = vllm_arguments(parts, Policy(), **SETTINGS, runner="1")
    assert "lasa_vllm.processor_v2:ConditionProcessor" in v2


@pytest.mark.parametrize("policy", [Policy("refuse"), Policy(controversial="off"), Policy(reread_every=4)])
def test_actions_that_vllm_does_not_have_are_refused(parts, policy):
    with pytest.raises(GuardError, match="--engine lasa"):
        vllm_arguments(parts, policy, **SETTINGS)


def test_adapters_and_soft_conditions_are_refused(parts):
    (Path(parts.model) / SOFT_CONDITION).touch()
    with pytest.raises(GuardError, match="soft condition"):
        vllm_arguments(parts, Policy(), **SETTINGS)
    (Path(parts.model) / "config.json").rename(Path(parts.model) / "adapter_config.json")
    with pytest.raises(GuardError, match="adapter"):
        vllm_arguments(parts, Policy(), **SETTINGS)


def test_without_vllm_it_says_what_to_install(parts, monkeypatch):
    monkeypatch.setattr("lasa.serving.vllm.find_spec", lambda package: None)
    with pytest.raises(GuardError, match="lasa-vllm"):
        serve_with_vllm(parts, Policy(), api_key=None, extra=[], **SETTINGS)
