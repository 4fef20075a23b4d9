"""What the guard knows of the served tokenizer: how chats are rendered, the condition, and the end of every prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from lasa.conditioning.condition import condition_ids, place_condition
from lasa.errors import GuardError
from lasa.interpreter.probe import InterpreterConfig, SafetySemanticInterpreter
from lasa.models.rendering import check_tokenizer, render, turn_end_ids
from lasa.models.thinking import answer_header, thinking_tail
from lasa_vllm.listening import Listening
from lasa_vllm.settings import read_settings

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig


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
