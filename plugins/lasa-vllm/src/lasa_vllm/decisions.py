"""Score to decision, on the device, and the hand-over from the model to the sampler of the same process.

The score stays in float32 and is compared in float64, as `lasa.conditioning.decision.decide` does: no cast to the
model's dtype can move a prompt across the threshold.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.logger import init_logger

from lasa.interpreter.probe import InterpreterConfig

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams

logger = init_logger(__name__)

FORCED = 1.0
"""The logit of a forced token; all others are minus infinity. Positive and finite, it survives every penalty."""

PENALTY = (0.01, 100.0)
"""Bounds of `repetition_penalty`, with which vLLM scales logits after the guard: float32 must survive it."""

FREE = frozenset(
    {
        "n",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "temperature",
        "watermarking",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "stop_token_ids",
        "ignore_eos",
        "max_tokens",
        "min_tokens",
        "flat_logprobs",
        "detokenize",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "include_stop_str_in_output",
        "output_kind",
        "stream_interval",
        "skip_clone",
        "output_text_buffer_length",
        "structured_outputs",
        "logit_bias",
        "allowed_token_ids",
        "extra_args",
        "bad_words",
        "skip_reading_prefix_cache",
        "repetition_detection",
        "routed_experts_prompt_start",
    }
)
"""Sampling parameters with which a flagged answer begins with the condition, or ends; a test tries them."""


@dataclass(frozen=True)
class Found:
    """What was found at the newest tokens of the rows of one step, each `[rows]`.

    Attributes:
        flagged: Where the prompt ends there, it is conditioned.
        spared: It would be, and is not: its kind of harm is to be answered.
        answers: The logit of the head for answers, where the answer goes on there; not a number without one.
    """

    flagged: Tensor
    spared: Tensor
    answers: Tensor


class Decisions:
    """The decisions on the rows of one step: put by the model's logits, taken by the sampler."""

    def __init__(self) -> None:
        self._found: Found | None = None

    def put(
        self, scores: Tensor, threshold: float, answered: Tensor | None = None, answers: Tensor | None = None
    ) -> None:
        """Decide on the rows of a step.

        Args:
            scores: Of the prompts, `[rows]`; one that is not a number counts as harmful.
            threshold: From which they are.
            answered: Whether the kind of harm, were there any, is to be answered, `[rows]` bool; None: never.
            answers: The logits of the head for answers, `[rows]`, if there is one.
        """
        harmful = ~(scores.double() < threshold)
        spared = torch.zeros_like(harmful) if answered is None else harmful & answered
        heard = torch.full_like(scores, torch.nan) if answers is None else answers
        self._found = Found(harmful & ~spared, spared, heard)

    def take(self, rows: int, device: torch.device) -> Found:
        """The decisions, once. Fails closed: without one for each row, all are flagged, and all answers are stopped."""
        found, self._found = self._found, None
        if found is None or found.flagged.shape != (rows,):
            seen = None if found is None else tuple(found.flagged.shape)
            logger.error("The guard has no scores for %d rows (found: %s); all of them are conditioned.", rows, seen)
            flagged = torch.ones(rows, dtype=torch.bool, device=device)
            return Found(flagged, ~flagged, torch.full((rows,), torch.nan, device=device))
        return found


_by_engine: dict[str, Decisions] = {}


def decisions_of(vllm_config: "VllmConfig") -> Decisions:
    """The hand-over of an engine within this process."""
    return _by_engine.setdefault(vllm_config.instance_id, Decisions())


def force_tokens(logits: Tensor, rows: Tensor, tokens: Tensor, conditioned: Tensor) -> None:
    """Leave only a forced token to the rows that are conditioned, in place.

    Args:
        logits: `[batch, vocabulary]`.
        rows: Rows that may have to be forced, `[k]` int64.
        tokens: The token of each, `[k]` int64.
        conditioned: Which of them are, `[k]` bool.
    """
    free = logits[rows]
    forced = torch.full_like(free, -torch.inf).scatter_(1, tokens[:, None], FORCED)
    logits[rows] = torch.where(conditioned[:, None], forced, free)


def switched_off(params: "SamplingParams", opt_out: bool) -> bool:
    """Whether a request is served without the guard: it asks for that, and the operator lets it."""
    return opt_out and (params.extra_args or {}).get("lasa") == "off"


def check_request(params: "SamplingParams") -> None:
    """Refuse what would show or reach the model past the guard.

    Raises:
        ValueError: With what to change; vLLM answers 400.
    """
    wish = (params.extra_args or {}).get("lasa", "off")
    if wish != "off":
        raise ValueError(f"`lasa` in vllm_xargs is {wish!r}; the one value it may have is 'off'.")
    low, high = PENALTY
    if not low <= params.repetition_penalty <= high:
        raise ValueError(f"repetition_penalty is {params.repetition_penalty}; on this guarded server, {low} to {high}.")
    plain = type(params)()
    for name in params.__struct_fields__:
        value, usual = getattr(params, name), getattr(plain, name)
        if name not in FREE and not name.startswith("_") and not (type(value) is type(usual) and value == usual):
            raise ValueError(
                f"This server is guarded and does not take {name}: it would show, or lead to, the answer of the "
                "unguarded model. Leave it out (beam search needs log-probabilities too)."
            )


def lowest_threshold(config: InterpreterConfig) -> float:
    """The score from which a prompt is conditioned.

    vLLM's workers do not know a prompt's language, so the lowest of the thresholds that may apply counts.
    """
    thresholds = [config.threshold, *config.language_thresholds.values()]
    return min(thresholds if config.controversial is None else [*thresholds, config.controversial])
