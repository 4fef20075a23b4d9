"""Score -> decision: the rule that training and inference share."""

from dataclasses import dataclass
from typing import Literal

from lasa.conditioning.condition import DEFAULT_CONDITION
from lasa.interpreter.probe import InterpreterConfig

Band = Literal["benign", "controversial", "harmful"]
Action = Literal["condition", "refuse", "log", "off"]


@dataclass(frozen=True)
class Policy:
    """What to do with each band of scores.

    Attributes:
        harmful: Action for prompts at or above the threshold.
        controversial: Action for prompts in the controversial band, if the interpreter has one.
        condition: The conditional text.
        reread_every: Score an answer again after every so many of its tokens, and replace it by a refusal once it
            is at or above the threshold; 0 never does. Answers that are conditioned already are left alone, and
            so are all where `harmful` is `log` or `off`.
    """

    harmful: Action = "condition"
    controversial: Action = "condition"
    condition: str = DEFAULT_CONDITION
    reread_every: int = 0


@dataclass(frozen=True)
class Decision:
    """Why a prompt was treated as it was; complete enough to be logged and explained.

    Attributes:
        score: Calibrated probability that the prompt is harmful.
        threshold: The threshold it was compared with.
        band: Where the score lies.
        action: What is done.
        language: Language whose threshold was used, or None for the global one.
        layer: Layer the score was read at.
        position: Token position it was read at.
        reason: The comparison in words.
    """

    score: float
    threshold: float
    band: Band
    action: Action
    language: str | None
    layer: int
    position: str
    reason: str

    @property
    def flagged(self) -> bool:
        """Whether the prompt is at or above the threshold."""
        return self.band == "harmful"


def decide(config: InterpreterConfig, policy: Policy, score: float, language: str | None = None) -> Decision:
    """The decision on one prompt.

    A score that is not a number counts as harmful: the guard fails closed.

    Args:
        config: The interpreter's config with its thresholds.
        policy: What to do with each band.
        score: Calibrated probability.
        language: The prompt's language, where it is known and the interpreter has a threshold for it.
    """
    own = language if language in config.language_thresholds else None
    threshold = config.language_thresholds[own] if own else config.threshold
    band: Band
    if not score < threshold:  # also when the score is not a number
        band, reason = "harmful", f"score {score:.4f} is at or above the threshold {threshold:.4f}"
    elif config.controversial is not None and score >= config.controversial:
        band, reason = "controversial", f"score {score:.4f} lies between {config.controversial:.4f} and {threshold:.4f}"
    else:
        band, reason = "benign", f"score {score:.4f} is below the threshold {threshold:.4f}"
    actions: dict[Band, Action] = {
        "harmful": policy.harmful,
        "controversial": policy.controversial,
        "benign": "off",
    }
    point = config.read_point
    return Decision(score, threshold, band, actions[band], own, point.layer, point.position, reason)
