"""What an engine of vLLM must be like to be guarded: nothing gets past the guard in it."""

from typing import TYPE_CHECKING

from vllm.tokenizers.registry import tokenizer_args_from_config

from lasa.errors import GuardError
from lasa_vllm.architectures import GUARDED, registered

if TYPE_CHECKING:
    from vllm.config import VllmConfig

PROCESSORS = ("lasa_vllm.processor_v1:ConditionProcessor", "lasa_vllm.processor_v2:ConditionProcessor")
"""For the V1 and the V2 model runner."""

SCHEDULER = "lasa_vllm.scheduler.guarded_scheduler"


def check_engine(vllm_config: "VllmConfig") -> None:
    """Make sure that an engine serves nothing past the guard.

    Raises:
        GuardError: It might; the message says which argument to change.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    architecture = model.architectures[0]
    runner, processors = int(vllm_config.use_v2_model_runner), list(model.logits_processors or ())
    problems = {
        f"{architecture} is not among the guarded architectures {', '.join(GUARDED)}": architecture not in GUARDED,
        f"--model-impl {model.model_impl} is not guarded; leave it out": model.model_impl not in ("auto", "vllm"),
        "the plugin is switched off (VLLM_PLUGINS does not name `lasa`)": (
            architecture in GUARDED and not registered(architecture)
        ),
        f"--logits-processors {PROCESSORS[runner]} is missing": PROCESSORS[runner] not in processors,
        f"{PROCESSORS[runner]} must be the last of the logits processors": PROCESSORS[runner] in processors[:-1],
        f"--scheduler-cls {SCHEDULER} is missing": vllm_config.scheduler_config.scheduler_cls != SCHEDULER,
        "--skip-tokenizer-init leaves no condition": model.skip_tokenizer_init,
        "--tokenizer-mode hf is missing (vLLM would render chats otherwise than the interpreter knows them)": (
            tokenizer_args_from_config(model)[0] != "hf"
        ),
        "--enable-trace-replay lets requests write over the condition": model.enable_trace_replay,
        "--enable-prompt-embeds lets requests ask what is no text": model.enable_prompt_embeds,
        "LoRA adapters are not guarded (the interpreter reads the model without them); merge one with `lasa merge`": (
            vllm_config.lora_config is not None
        ),
        "speculative decoding is not guarded": vllm_config.speculative_config is not None,
        "pipeline parallelism is not guarded; use --tensor-parallel-size": parallel.pipeline_parallel_size > 1,
        "prefill context parallelism is not guarded": parallel.prefill_context_parallel_size > 1,
        "batch-sharded sampling is not guarded": parallel.enable_batch_sharded_sampling,
        "this interpreter's model generates no text here (pooling)": model.runner_type != "generate",
    }
    found = [problem for problem, applies in problems.items() if applies]
    if found:
        raise GuardError(f"This engine cannot be guarded, so it does not start: {'; '.join(found)}.")
