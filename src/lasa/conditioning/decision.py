"""Score -> decision: the rule that training and inference share."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lasa.conditioning.condition import DEFAULT_CONDITION
from lasa.interpreter.heads import AnswerHead, Grade
from lasa.interpreter.probe import InterpreterConfig

Band = Literal["benign", "controversial", "harmful"]
Action = Literal["condition", "refuse", "help", "log", "off"]
Uncovered = Literal["as_scored", "refuse", "log", "answer"]


@dataclass(frozen=True)
class Policy:
    """What to do with each band of scores.

    Attributes:
        harmful: Action for prompts at or above the threshold.
        controversial: Action for prompts in the controversial band, if the interpreter has one.
        condition: The conditional text.
        reread_every: Read an answer again after every so many of its tokens, and replace it by a refusal once it is
            harmful (by the interpreter's head for answers; where it has none, by the prompt's threshold, which was not
            calibrated for that); 0 never does. Answers that are conditioned already are left alone, and
            so are all where `harmful` is `log` or `off`.
        uncovered: What to do with a prompt in a language in which the interpreter is certified not to hold: as its
            score says, always refuse, only log, or answer whatever the score.
        categories: Actions that replace `harmful` where the kind of harm is named; see `lasa.data.harm`.
    """

    harmful: Action = "condition"
    controversial: Action = "condition"
    condition: str = DEFAULT_CONDITION
    reread_every: int = 0
    uncovered: Uncovered = "as_scored"
    categories: Mapping[str, Action] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """Why a prompt was treated as it was; complete enough to be logged and explained.

    Attributes:
        score: Calibrated probability that the prompt is harmful.
        threshold: The threshold it was compared with.
        band: Where the score lies.
        action: What is done.
        language: Language whose threshold was used, or None for the global one.
        coverage: Grade of the prompt's language, the worst of several; None where it was not graded or is not known.
        layer: Layer the score was read at.
        position: Token position it was read at.
        reason: The comparison in words.
        category: The kind of harm, where the prompt is not benign and the interpreter is sure enough to name one.
        categories: Probability of each category that the interpreter tells apart, if the prompt is harmful.
    """

    score: float
    threshold: float
    band: Band
    action: Action
    language: str | None
    layer: int
    position: str
    reason: str
    coverage: Grade | None = None
    category: str | None = None
    categories: Mapping[str, float] = field(default_factory=dict)

    @property
    def replaced(self) -> bool:
        """Whether a fixed message takes the answer's place, so that nothing is generated."""
        return self.action in ("refuse", "help")

    @property
    def flagged(self) -> bool:
        """Whether the prompt is at or above the threshold."""
        return self.band == "harmful"


def decide(
    config: InterpreterConfig,
    policy: Policy,
    score: float,
    languages: Collection[str] = (),
    categories: Sequence[float] = (),
) -> Decision:
    """The decision on one prompt.

    A score that is not a number counts as harmful: the guard fails closed.

    Args:
        config: The interpreter's config with its thresholds.
        policy: What to do with each band.
        score: Calibrated probability.
        languages: The languages that the prompt is written in, where they are known. The strictest threshold of
            them applies, so that a passage in another language never buys a laxer one; and the worst grade.
        categories: Probability of each category of the interpreter, if the prompt is harmful.
    """
    thresholds = {code: config.language_thresholds.get(code, config.threshold) for code in sorted(languages)}
    strictest = min(thresholds, key=lambda code: thresholds[code], default=None)
    own = strictest if strictest in config.language_thresholds else None
    threshold = thresholds[strictest] if strictest is not None else config.threshold
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
    action, grade = actions[band], _worst(config, languages)
    kinds = dict(zip(config.categories.names if config.categories else (), categories, strict=False))
    category = _named(config, kinds) if band != "benign" else None
    if category is not None:
        reason += f"; most like {category} ({kinds[category]:.2f})"
        if band == "harmful":
            action = policy.categories.get(category, action)
    if grade == "not covered" and policy.uncovered != "as_scored":
        action = _IN_UNCOVERED[policy.uncovered]
        reason += f"; in a language that is not covered the policy is {policy.uncovered!r}"
    point = config.read_point
    return Decision(score, threshold, band, action, own, point.layer, point.position, reason, grade, category, kinds)


def decide_answer(prompt: Decision, head: AnswerHead, score: float) -> Decision:
    """The decision on an answer that is being written, by the head for answers.

    Args:
        prompt: The decision on its prompt.
        head: How the head is used.
        score: The highest score so far; one that is not a number counts as harmful.
    """
    harmful = not score < head.threshold
    comparison = "at or above" if harmful else "below"
    return Decision(
        score, head.threshold, "harmful" if harmful else "benign", "refuse" if harmful else prompt.action, None,
        prompt.layer, "answer", f"the answer's score {score:.4f} is {comparison} its threshold {head.threshold:.4f}",
    )  # fmt: skip


_IN_UNCOVERED: dict[Uncovered, Action] = {"refuse": "refuse", "log": "log", "answer": "off"}
_GRADES: tuple[Grade, ...] = ("not covered", "partly", "covered")


def _worst(config: InterpreterConfig, languages: Collection[str]) -> Grade | None:
    graded = {config.coverage[code] for code in languages if code in config.coverage}
    return min(graded, key=_GRADES.index, default=None)


def _named(config: InterpreterConfig, categories: Mapping[str, float]) -> str | None:
    """The likeliest category, where it is likely enough; none where a probability is no number."""
    if config.categories is None or not categories or not all(map(math.isfinite, categories.values())):
        return None
    best = max(categories, key=lambda name: categories[name])
    return best if categories[best] >= config.categories.threshold else None
