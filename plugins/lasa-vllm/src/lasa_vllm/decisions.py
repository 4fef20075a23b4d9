"""Score to decision, on the device, and the hand-over from the model to the sampler of the same process.

The score stays in float32 and is compared in float64, as `lasa.conditioning.decision.decide` does: no cast to the
model's dtype can move a prompt across the threshold.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.logger import init_logger

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams

logger = init_logger(__name__)


class Decisions:
    """The decisions on the rows of one step: put by the model's logits, taken by the sampler."""

    def __init__(self) -> None:
        self._flagged: Tensor | None = None

    def put(self, scores: Tensor, threshold: float) -> None:
        """Decide on scores `[rows]`; one that is not a number counts as harmful."""
        self._flagged = ~(scores.double() < threshold)

    def take(self, rows: int, device: torch.device) -> Tensor:
        """The decisions `[rows]`, once. Fails closed: without one for each row, all rows are flagged."""
        flagged, self._flagged = self._flagged, None
        if flagged is None or flagged.shape != (rows,):
            found = None if flagged is None else tuple(flagged.shape)
            logger.error("The guard has no scores for %d rows (found: %s); all of them are conditioned.", rows, found)
            return torch.ones(rows, dtype=torch.bool, device=device)
        return flagged


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
    forced = torch.full_like(free, -torch.inf).scatter_(1, tokens[:, None], 0.0)
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
    asks_for = {
        "logprobs": params.logprobs is not None or params.logprob_token_ids is not None,
        "prompt_logprobs (echo with logprobs)": params.prompt_logprobs is not None,
        "thinking_token_budget": params.thinking_token_budget is not None,
    }
    for name, asked in asks_for.items():
        if asked:
            raise ValueError(
                f"This server is guarded and does not give {name}: it would show, or lead to, the answer of the "
                "unguarded model. Leave it out (beam search needs it too)."
            )
