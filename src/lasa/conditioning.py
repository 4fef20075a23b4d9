"""Score -> decision -> condition tokens: the only code that training and inference share.

The condition is a sentence at the start of the assistant's turn (LASA, section 5). It is token ids, appended right
after the generation prompt and before anything the assistant says; it is never merged with what follows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lasa.errors import RecipeError
from lasa.interpreter import InterpreterConfig

DEFAULT_CONDITION = (
    "Harmful query detected. I should refuse this request and provide a safe response in the user's language."
)
"""The paper's conditional text."""

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


def condition_ids(tokenizer: Any, text: str = DEFAULT_CONDITION) -> list[int]:
    """Token ids of the condition.

    Raises:
        RecipeError: The text is empty, or begins or ends in white space (which would merge with its neighbours).
    """
    if not text.strip() or text != text.strip():
        raise RecipeError(f"The condition {text!r} must be a text without white space at its ends.")
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def place_condition(
    prompt_ids: Sequence[int], condition: Sequence[int], thinking_tail: Sequence[int] = ()
) -> list[int]:
    """A rendered prompt with the condition in place, as the model is trained and run.

    Args:
        prompt_ids: The rendered prompt.
        condition: Token ids of the condition.
        thinking_tail: `rendering.thinking_tail`: where the template opens a block of reasoning, the condition goes
            before the block and again into it.
    """
    if not thinking_tail:
        return [*prompt_ids, *condition]
    return [*prompt_ids[: -len(thinking_tail)], *condition, *thinking_tail, *condition]


def completion_ids(tokenizer: Any, text: str, turn_end: Sequence[int]) -> list[int]:
    """Token ids of an assistant's answer with the turn's own terminator, as the model is trained to produce it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*ids, *turn_end]
