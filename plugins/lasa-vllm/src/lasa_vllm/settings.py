r"""What the operator sets, in vLLM's own arguments, and what an engine must be like to be guarded.

vllm serve MODEL \
        --additional-config '{"lasa": {"interpreter": "path/to/interpreter"}}' \
        --logits-processors lasa_vllm.processor_v1:ConditionProcessor \
        --scheduler-cls lasa_vllm.scheduler.guarded_scheduler

"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from transformers import AutoTokenizer
from vllm.tokenizers.registry import tokenizer_args_from_config

from lasa.conditioning.condition import DEFAULT_CONDITION, condition_ids, place_condition
from lasa.errors import ArtifactError, GuardError
from lasa.files.artifacts import read_json
from lasa.interpreter.probe import InterpreterConfig, SafetySemanticInterpreter
from lasa.models.rendering import check_tokenizer, render, turn_end_ids
from lasa.models.thinking import answer_header, thinking_tail
from lasa_vllm.listening import Listening
from lasa_vllm.plugin import GUARDED, registered

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

PROCESSORS = ("lasa_vllm.processor_v1:ConditionProcessor", "lasa_vllm.processor_v2:ConditionProcessor")
"""For the V1 and the V2 model runner."""

SCHEDULER = "lasa_vllm.scheduler.guarded_scheduler"


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """The value of `lasa` in `--additional-config`.

    Attributes:
        interpreter: Interpreter folder, or id on the Hugging Face Hub.
        condition: The conditional text.
        hide_condition: Leave the condition out of the answer.
        opt_out: Let a request switch the guard off for itself, with `vllm_xargs: {"lasa": "off"}`.
        force: Also read a model that the interpreter was not trained on.
        answered: Kinds of harm (see `lasa.data.harm`) that are answered as if they were none, where they are named.
        read_answers: Read answers, too, and stop those that the interpreter's head for answers finds harmful.
    """

    interpreter: str
    condition: str = DEFAULT_CONDITION
    hide_condition: bool = True
    opt_out: bool = False
    force: bool = False
    answered: tuple[str, ...] = ()
    read_answers: bool = False


@dataclass(frozen=True)
class Prompting:
    """What the guard knows of a tokenizer.

    Attributes:
        condition: Token ids of the condition.
        tail: Token ids that every rendered prompt ends in, the read point last.
        end: Token id that ends an answer.
        listening: How answers are read again, if they are.
    """

    condition: list[int]
    tail: list[int]
    end: int
    listening: Listening | None = None


def read_settings(vllm_config: "VllmConfig") -> Settings:
    """The settings of an engine.

    Raises:
        GuardError: There are none, or they are wrong; nothing is served without a guard.
    """
    additional = vllm_config.additional_config
    value = additional.get("lasa") if isinstance(additional, dict) else None
    if value is None:
        raise GuardError(
            "lasa-vllm is installed, but no interpreter is configured, so nothing is served. Give "
            '--additional-config \'{"lasa": {"interpreter": "FOLDER"}}\', or set VLLM_PLUGINS= (empty) in the '
            "environment to serve without a guard."
        )
    try:
        return TypeAdapter(Settings).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("lasa", *first["loc"])))
        raise GuardError(f"--additional-config is wrong at {where!r}: {first['msg']}.") from error


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


def load_tokenizer(model: "ModelConfig", interpreter: InterpreterConfig) -> Any:
    """The served tokenizer, rendering as it did when the interpreter was trained.

    Where that is not with the tokenizer's own template, `lasa serve` starts vLLM with the interpreter's.

    Raises:
        ModelError: It cannot render chats.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        model.tokenizer, revision=model.tokenizer_revision, trust_remote_code=model.trust_remote_code
    )
    tokenizer.chat_template = interpreter.chat_template or tokenizer.chat_template
    check_tokenizer(tokenizer)
    return tokenizer


def guarded_tokenizer(vllm_config: "VllmConfig") -> Any:
    """The tokenizer that an engine's chats are rendered with.

    Raises:
        LasaError: There is no interpreter, or the tokenizer cannot render chats.
    """
    interpreter = SafetySemanticInterpreter.from_pretrained(read_settings(vllm_config).interpreter)
    return load_tokenizer(vllm_config.model_config, interpreter.config)


def prompting(vllm_config: "VllmConfig") -> Prompting:
    """The condition, and the end of every prompt, as token ids.

    Raises:
        GuardError: Prompts have no common end, it opens a block of reasoning, answers do not begin there, or answers
            are to be read and cannot be.
    """
    settings = read_settings(vllm_config)
    config = SafetySemanticInterpreter.from_pretrained(settings.interpreter).config
    tokenizer = load_tokenizer(vllm_config.model_config, config)
    if thinking_tail(tokenizer):
        raise GuardError(
            "The chat template opens a block of reasoning, before which vLLM cannot put the condition. Serve this "
            "model with `lasa serve --engine lasa`, or use a template that does not open the block."
        )
    tail = _common_end(tokenizer)
    if not tail:
        raise GuardError("Prompts rendered with this chat template have no common end, so none can be recognised.")
    condition = place_condition([], condition_ids(tokenizer, settings.condition), header=answer_header(tokenizer))
    end = turn_end_ids(tokenizer)[-1] if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    listening = _listening(vllm_config, config, tokenizer, condition) if settings.read_answers else None
    return Prompting(condition, tail, end, listening)


def answered_kinds(settings: Settings, config: InterpreterConfig) -> list[int]:
    """The numbers of the interpreter's categories that are to be answered.

    Raises:
        GuardError: It does not tell one of them apart.
    """
    names = config.categories.names if config.categories else ()
    strange = sorted(set(settings.answered) - set(names))
    if strange:
        known = f"it tells apart {', '.join(names)}" if names else "it was trained without labels of categories"
        raise GuardError(f"`answered` names {strange[0]!r}, which this interpreter does not know: {known}.")
    return [names.index(name) for name in settings.answered]


def lowest_threshold(config: InterpreterConfig) -> float:
    """The score from which a prompt is conditioned.

    vLLM's workers do not know a prompt's language, so the lowest of the thresholds that may apply counts.
    """
    thresholds = [config.threshold, *config.language_thresholds.values()]
    return min(thresholds if config.controversial is None else [*thresholds, config.controversial])


def is_aligned(model: str, config: InterpreterConfig) -> bool:
    """Whether a model folder was trained by lasa, so that its weights are not those the interpreter was trained on.

    Raises:
        ArtifactError: It was, but from another base model than the interpreter's.
    """
    card = Path(model) / "lasa.json"
    if not card.is_file():
        return False
    base = read_json(card).get("base_fingerprint")
    if base and base != config.base_fingerprint:  # it does not say where the base was held in 4 bits
        raise ArtifactError(
            f"{model} was aligned from another base model than the one that this interpreter reads. Give the "
            'interpreter of its run, or force the pairing with "force": true beside "interpreter".'
        )
    return True


def _listening(
    vllm_config: "VllmConfig", config: InterpreterConfig, tokenizer: Any, condition: Sequence[int]
) -> Listening:
    if config.answers is None:
        raise GuardError(
            "`read_answers` needs an interpreter with a head for answers, and this one has none. Train one with "
            "answers (`interpreter.answers` in a recipe), or leave it out."
        )
    generation = vllm_config.model_config.try_get_generation_config().get("eos_token_id")
    ends = {tokenizer.eos_token_id, *turn_end_ids(tokenizer)}
    ends |= set(generation) if isinstance(generation, list) else {generation}
    marks = [token for token in tokenizer.all_special_ids if token not in ends and token not in condition]
    if not marks:
        raise GuardError(
            "`read_answers` needs a special token that no answer has, to say that one is stopped, and this tokenizer "
            "has none but those that end a turn. Use --engine lasa."
        )
    return Listening(config.answers, marks[0])


def _common_end(tokenizer: Any) -> list[int]:
    first, second = ([{"role": "user", "content": text}] for text in ("a", "7 b"))
    ends = zip(
        reversed(render(tokenizer, first).token_ids), reversed(render(tokenizer, second).token_ids), strict=False
    )
    common: list[int] = []
    for one, other in ends:
        if one != other:
            break
        common.insert(0, one)
    return common
