"""What keeps an engine from being guarded, and which weights the interpreter may read."""

import json
from types import SimpleNamespace

import pytest
from lasa_vllm.engine import PROCESSORS, SCHEDULER, check_engine
from lasa_vllm.fingerprint import is_aligned
from lasa_vllm.plugin import register

from lasa.errors import ArtifactError, GuardError


@pytest.fixture
def config(tmp_path):
    """The configuration of an engine that can be guarded, as far as it is looked at."""
    register()
    model = SimpleNamespace(
        architectures=["LlamaForCausalLM"],
        model_impl="auto",
        enable_prompt_embeds=False,
        logits_processors=[PROCESSORS[0]],
        skip_tokenizer_init=False,
        tokenizer=str(tmp_path),
        tokenizer_mode="auto",
        tokenizer_revision=None,
        trust_remote_code=False,
        enable_trace_replay=False,
        runner_type="generate",
    )
    return SimpleNamespace(
        model_config=model,
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1, prefill_context_parallel_size=1, enable_batch_sharded_sampling=False
        ),
        scheduler_config=SimpleNamespace(scheduler_cls=SCHEDULER),
        lora_config=None,
        speculative_config=None,
        use_v2_model_runner=False,
    )


@pytest.mark.parametrize(
    ("part", "setting", "value", "said"),
    [
        ("model_config", "architectures", ["PhiForCausalLM"], "guarded architectures"),
        ("model_config", "model_impl", "transformers", "--model-impl"),
        ("model_config", "logits_processors", [PROCESSORS[1]], "processor_v1"),
        ("model_config", "logits_processors", [PROCESSORS[0], "other:Processor"], "must be the last"),
        ("model_config", "enable_prompt_embeds", True, "--enable-prompt-embeds"),
        ("model_config", "skip_tokenizer_init", True, "--skip-tokenizer-init"),
        ("model_config", "tokenizer_mode", "mistral", "--tokenizer-mode hf"),
        ("model_config", "enable_trace_replay", True, "--enable-trace-replay"),
        ("model_config", "runner_type", "pooling", "pooling"),
        ("parallel_config", "pipeline_parallel_size", 2, "pipeline parallelism"),
        ("parallel_config", "prefill_context_parallel_size", 2, "context parallelism"),
        ("parallel_config", "enable_batch_sharded_sampling", True, "batch-sharded"),
        (None, "lora_config", object(), "LoRA"),
        (None, "speculative_config", object(), "speculative decoding"),
        ("scheduler_config", "scheduler_cls", None, "--scheduler-cls"),
    ],
)
def test_an_engine_that_might_answer_past_the_guard_does_not_start(config, part, setting, value, said):
    check_engine(config)
    setattr(getattr(config, part) if part else config, setting, value)
    with pytest.raises(GuardError, match=said):
        check_engine(config)


def test_a_folder_whose_chats_vllm_would_render_in_mistral_s_way_needs_the_tokenizer_mode(config, tmp_path):
    (tmp_path / "consolidated.safetensors").touch()
    (tmp_path / "tekken.json").touch()
    with pytest.raises(GuardError, match="--tokenizer-mode hf"):
        check_engine(config)
    config.model_config.tokenizer_mode = "hf"
    check_engine(config)


def test_an_aligned_model_is_read_by_the_interpreter_of_its_base(tmp_path):
    interpreter = SimpleNamespace(base_fingerprint="one")
    assert not is_aligned(str(tmp_path), interpreter)
    for base in ({}, {"base_fingerprint": ""}, {"base_fingerprint": "one"}):
        (tmp_path / "lasa.json").write_text(json.dumps(base))
        assert is_aligned(str(tmp_path), interpreter)
    (tmp_path / "lasa.json").write_text(json.dumps({"base_fingerprint": "other"}))
    with pytest.raises(ArtifactError, match="another base model"):
        is_aligned(str(tmp_path), interpreter)
