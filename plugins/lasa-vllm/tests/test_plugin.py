"""The entry point: with the plugin installed, nothing starts that is not guarded, whatever the arguments."""

import ast
from pathlib import Path

import lasa_vllm.plugin
import pytest
from engines import engine, save
from lasa_vllm.architectures import GUARDED
from lasa_vllm.plugin import TESTED, UNTESTED, check_version, register
from vllm import LLM, ModelRegistry, __version__
from vllm.model_executor.model_loader import utils
from vllm.plugins import load_general_plugins

from conftest import build_model
from guards import CONDITION, build_interpreter
from lasa.errors import GuardError


def test_it_imports_nothing_that_could_fail():
    """VLLM logs what keeps a plugin from being imported, and goes on without it."""
    assert [one.module for one in imported("plugin")] == ["lasa_vllm.architectures"]
    assert imported("architectures") == imported("__init__") == []


def imported(module):
    """The imports of a module that are not left to a function."""
    tree = ast.parse((Path(lasa_vllm.plugin.__file__).parent / f"{module}.py").read_text())
    return [one for one in tree.body if isinstance(one, ast.Import | ast.ImportFrom)]


def test_a_vllm_that_it_was_not_tested_with_is_refused(monkeypatch):
    monkeypatch.delenv(UNTESTED, raising=False)
    check_version("0.32.1+cpu")
    for other in ("0.31.0", "0.33.0", "1.0"):
        with pytest.raises(GuardError, match=TESTED):
            check_version(other)
    monkeypatch.setenv(UNTESTED, "1")
    check_version("0.33.0")


def test_these_tests_run_with_a_version_that_it_names():
    check_version(__version__)


def test_it_can_be_registered_twice():
    register()
    register()


@pytest.fixture(scope="module")
def unknown(tokenizer, tmp_path_factory):
    """A model that vLLM serves and the plugin does not know."""
    folder = tmp_path_factory.mktemp("granite")
    model = build_model("granite", tokenizer, hidden_size=128)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    from engines import tiny_prompts

    prompts = tiny_prompts(8)
    return save(model, tokenizer, build_interpreter(model, tokenizer, prompts), CONDITION, prompts, folder)


BARE = {"logits_processors": None, "scheduler_cls": None}


@pytest.mark.parametrize("arguments", [{}, BARE, {**BARE, "model_impl": "transformers"}], ids=str)
def test_a_model_that_is_not_known_does_not_start(unknown, arguments):
    assert "GraniteForCausalLM" not in GUARDED
    with pytest.raises(Exception, match="not among the guarded"), engine(unknown, **arguments):
        pass


@pytest.mark.parametrize("arguments", [{}, BARE], ids=str)
def test_another_implementation_of_a_known_model_does_not_start(tiny, arguments):
    with pytest.raises(Exception, match="--model-impl"), engine(tiny("llama"), model_impl="transformers", **arguments):
        pass


def test_nothing_starts_without_the_plugin_s_settings(unknown):
    with pytest.raises(Exception, match="no interpreter is configured"):
        LLM(model=str(unknown.model), dtype="float32", enforce_eager=True, max_model_len=256)


@pytest.mark.parametrize("case", ["unknown", "llama"])
def test_where_the_start_is_not_checked_the_model_is_not_loaded(case, unknown, tiny, monkeypatch):
    monkeypatch.setattr("lasa_vllm.engine.check_engine", lambda config: None)
    case, arguments = (unknown, {}) if case == "unknown" else (tiny("llama"), {"model_impl": "transformers"})
    with pytest.raises(Exception, match="which is not guarded"), engine(case, **BARE, **arguments):
        pass


def test_a_class_that_took_the_place_of_a_guarded_one_is_not_loaded(tiny, monkeypatch):
    load_general_plugins()
    monkeypatch.setattr("lasa_vllm.engine.check_engine", lambda config: None)
    monkeypatch.setattr(utils, "_MODEL_ARCH_BY_HASH", {})  # what was resolved for the same model before
    guarded = ModelRegistry.models["LlamaForCausalLM"]
    try:
        ModelRegistry.register_model("LlamaForCausalLM", "vllm.model_executor.models.llama:LlamaForCausalLM")
        with pytest.raises(Exception, match="which is not guarded"), engine(tiny("llama"), **BARE):
            pass
    finally:
        ModelRegistry.models["LlamaForCausalLM"] = guarded


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"enable_lora": True}, "LoRA"),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "speculative"),
        ({"enable_prompt_embeds": True}, "--enable-prompt-embeds"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_what_is_not_guarded_is_refused_by_name(tiny, arguments, said):
    with pytest.raises(Exception, match=said), engine(tiny("llama"), **arguments):
        pass
