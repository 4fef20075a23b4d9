"""Calibrate an interpreter on development data: temperature, thresholds with a stated guarantee, and the abstain band.

Thresholds for a target rate are split-conformal (Vovk et al., 2005): they assume that the prompts to come are
exchangeable with the development prompts, and nothing about the scores. So nothing is promised for a language without
development prompts; benign ones, which need no judgement of harm, are enough for a promise on false refusals. Two
things bend the assumption a little and are accepted: the same development prompts stopped the training, and
translations of one question are not independent, which widens the spread of the global threshold around its average.
A language's own threshold holds with confidence, not only on average, where there are questions enough. A question
that is asked in several ways there (paraphrases, templates) counts once, with its highest score.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import binom
from torch import Tensor

from lasa.data.prompts import Prompt
from lasa.interpreter.probe import InterpreterConfig, SafetySemanticInterpreter
from lasa.interpreter.settings import CalibrationOptions
from lasa.interpreter.training import LabelledStates
from lasa.languages import sort_languages

CONFIDENCE = 0.95
"""Of the bound on a language's own rate of false refusals."""


@dataclass(frozen=True)
class Threshold:
    """A threshold for a target rate and what can be promised about it.

    Attributes:
        value: A probability.
        guaranteed: Whether the sample allows the bound.
        statement: What holds, in words.
    """

    value: float
    guaranteed: bool
    statement: str


@dataclass(frozen=True)
class Calibration:
    """A calibrated config and what can be said about it.

    Attributes:
        config: With temperature, thresholds and band.
        statements: What holds for the threshold (`threshold`), the band (`controversial`) and each language's own
            threshold (`language sw`), in words.
    """

    config: InterpreterConfig
    statements: dict[str, str]


def calibrate(
    interpreter: SafetySemanticInterpreter,
    development: LabelledStates,
    options: CalibrationOptions,
    more_benign: LabelledStates | None = None,
) -> Calibration:
    """Fit temperature, thresholds and band on rows that were not trained on.

    Args:
        interpreter: The trained probe.
        development: Development rows, with both labels.
        options: What to fit.
        more_benign: Benign rows that join the development rows for thresholds with a target; benign prompts can be
            had in languages for which there is no safety data.
    """
    with torch.no_grad():
        logits = interpreter(development.states)
    temperature = fit_temperature(logits, development.labels)
    probabilities = torch.sigmoid(logits / temperature)
    harmful = development.labels > 0.5
    benign = development.rows((~harmful).tolist())
    if more_benign is not None:
        benign = LabelledStates(torch.cat([benign.states, more_benign.states]), [*benign.prompts, *more_benign.prompts])
    with torch.no_grad():
        scores = torch.sigmoid(interpreter(benign.states) / temperature)
    by_language: dict[str, float] = {}
    if options.false_refusals is None:
        threshold = balanced_threshold(probabilities, development.labels)
        statements = {"threshold": "Best balanced accuracy on development data; no bound on false refusals."}
    else:
        found = conformal_threshold(scores.tolist(), options.false_refusals)
        codes = sort_languages({p.language for p in benign.prompts})
        known = f" They are in {', '.join(codes)}; in other languages nothing is promised."
        threshold, statements = found.value, {"threshold": found.statement + known}
        if options.per_language:
            by_language, stated = _language_thresholds(benign.prompts, scores.tolist(), options.false_refusals)
            statements |= stated
    floor: float | None = None
    if options.controversial_misses is not None:
        band = conformal_floor(probabilities[harmful].tolist(), options.controversial_misses)
        statements["controversial"] = band.statement
        floor = band.value if band.value < min([threshold, *by_language.values()]) else None
        if floor is None:
            statements["controversial"] += " The threshold lies below that already, so there is no band."
    config = replace(
        interpreter.config,
        temperature=temperature,
        threshold=threshold,
        language_thresholds=by_language,
        controversial=floor,
    )
    return Calibration(config, statements)


def add_language_thresholds(
    interpreter: SafetySemanticInterpreter, benign: LabelledStates, false_refusals: float
) -> Calibration:
    """Thresholds for the languages of benign prompts, added to an interpreter that is not trained again.

    A language whose prompts are too few for the bound keeps the threshold that it had.

    Args:
        interpreter: As trained and calibrated.
        benign: Benign prompts, in any language, with their states at its read point.
        false_refusals: Target share of flagged benign prompts in each of the languages.
    """
    scores = interpreter.probability(benign.states).tolist()
    thresholds, statements = _language_thresholds(benign.prompts, scores, false_refusals)
    known = {**interpreter.config.language_thresholds, **thresholds}
    return Calibration(replace(interpreter.config, language_thresholds=known), statements)


def _language_thresholds(
    prompts: Sequence[Prompt], scores: Sequence[float], false_refusals: float
) -> tuple[dict[str, float], dict[str, str]]:
    """The threshold of each language that has benign prompts enough, and what holds for every one of them."""
    thresholds: dict[str, float] = {}
    statements: dict[str, str] = {}
    for code in sort_languages({prompt.language for prompt in prompts}):
        own = confident_threshold(_highest_by_question(prompts, scores, code), false_refusals)
        if own.guaranteed:
            thresholds[code] = own.value
        statements[f"language {code}"] = own.statement + ("" if own.guaranteed else " The global threshold is used.")
    return thresholds, statements


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the lowest negative log-likelihood (Guo et al., 2017), between 0.05 and 20.

    Targets are smoothed as by Platt (1999), so that development data which the probe separates perfectly do not ask
    for a temperature of zero: `(n1 + 1) / (n1 + 2)` for the n1 harmful rows, `1 / (n0 + 2)` for the n0 benign ones.
    """
    logits, harmful = logits.double(), labels > 0.5
    n1, n0 = int(harmful.sum()), int((~harmful).sum())
    targets = torch.where(harmful, (n1 + 1) / (n1 + 2), 1 / (n0 + 2)).double()

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        return float(torch.nn.functional.binary_cross_entropy_with_logits(scaled, targets))

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20.0)), method="bounded")
    return float(math.exp(found.x))


def conformal_threshold(benign_probabilities: Sequence[float], false_refusals: float) -> Threshold:
    """The threshold that flags at most a share of benign prompts, with the split-conformal guarantee where n allows.

    With n exchangeable benign development prompts, flagging what lies strictly above the ceil((n + 1)(1 - a))-th
    smallest score flags a new benign prompt with probability at most a (Vovk et al., 2005).

    Args:
        benign_probabilities: Scores of benign development prompts.
        false_refusals: The target share a, in (0, 1).
    """
    scores = np.sort(np.asarray(benign_probabilities, dtype=np.float64))
    n, rank = len(scores), math.ceil((len(scores) + 1) * (1 - false_refusals))
    if rank > n:
        above_all = _just_above(scores[-1]) if n else 0.5
        return Threshold(
            max(above_all, 0.5),
            False,
            f"No guarantee: {n} benign development prompts cannot bound a rate of {false_refusals:.1%}; at least "
            f"{math.ceil(1 / false_refusals) - 1} are needed. The threshold lies above all of them.",
        )
    return _above(
        scores,
        rank,
        f"At most {false_refusals:.1%} of benign prompts like the {n} development prompts are flagged "
        "(split conformal, on average over development sets).",
    )


def confident_threshold(benign_probabilities: Sequence[float], false_refusals: float) -> Threshold:
    """The threshold that flags at most a share of benign prompts with 95 % confidence, or on average where n is small.

    With n independent benign development prompts, flagging what lies strictly above all but k of their scores flags
    more than a share a of benign prompts with a probability of at most P(Binomial(n, a) <= k), whatever the
    distribution of the scores (Wilks, 1941; Vovk, 2012). A rate asked for is then rarely exceeded in any of ten
    languages; a bound on average is exceeded in about half of them.

    Args:
        benign_probabilities: Scores of benign development prompts, one per question.
        false_refusals: The target share a, in (0, 1).
    """
    scores = np.sort(np.asarray(benign_probabilities, dtype=np.float64))
    n = len(scores)
    passed = binom.cdf(np.arange(n + 1), n, false_refusals) <= 1 - CONFIDENCE
    if not n or not passed[0]:
        needed = math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - false_refusals))
        average = conformal_threshold(benign_probabilities, false_refusals)
        statement = f"{average.statement} A bound with {CONFIDENCE:.0%} confidence takes {needed} prompts."
        return replace(average, statement=statement)
    return _above(
        scores,
        n - (int(passed.sum()) - 1),
        f"At most {false_refusals:.1%} of benign prompts like those of the {n} development questions are flagged "
        f"(distribution-free, with {CONFIDENCE:.0%} confidence).",
    )


def conformal_floor(harmful_probabilities: Sequence[float], misses: float) -> Threshold:
    """The lower edge of the abstain band: at most a share of harmful prompts scores below it.

    With n exchangeable harmful development prompts, a new one lies below the floor((n + 1) a)-th smallest score with
    probability at most a.

    Args:
        harmful_probabilities: Scores of harmful development prompts.
        misses: The target share a, in (0, 1).
    """
    scores = np.sort(np.asarray(harmful_probabilities, dtype=np.float64))
    n, rank = len(scores), math.floor((len(scores) + 1) * misses)
    if rank < 1:
        return Threshold(
            float(scores[0]) if n else 0.0,
            False,
            f"No guarantee: {n} harmful development prompts cannot bound a rate of {misses:.1%}; at least "
            f"{math.ceil(1 / misses) - 1} are needed. The band begins at the lowest of them.",
        )
    return Threshold(
        float(scores[rank - 1]),
        True,
        f"At most {misses:.1%} of harmful prompts like the {n} development prompts score below the band "
        "(split conformal, on average over development sets).",
    )


def balanced_threshold(probabilities: Tensor, labels: Tensor) -> float:
    """The middle of the widest interval of thresholds with the best balanced accuracy."""
    p, y = probabilities.double().numpy(), labels.numpy() > 0.5
    edges = np.concatenate([[0.0], np.unique(p), [1.0]])
    middles = (edges[1:] + edges[:-1]) / 2
    tpr = 1 - np.searchsorted(np.sort(p[y]), middles) / y.sum()
    tnr = np.searchsorted(np.sort(p[~y]), middles) / (~y).sum()
    best = np.flatnonzero(tpr + tnr >= (tpr + tnr).max() - 1e-12)
    widest = best[np.argmax((edges[1:] - edges[:-1])[best])]
    return float(middles[widest])


def expected_calibration_error(
    probabilities: NDArray[np.float64], labels: NDArray[np.float64], bins: int = 10
) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error with equal-width bins, and the reliability diagram it sums over.

    Args:
        probabilities: `[rows]` in 0..1.
        labels: `[rows]`, 1 for harmful.
        bins: Number of bins.
    """
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    diagram, error = [], 0.0
    for number in range(bins):
        inside = index == number
        if inside.any():
            confidence, accuracy = float(probabilities[inside].mean()), float(labels[inside].mean())
            diagram.append({"confidence": confidence, "accuracy": accuracy, "n": int(inside.sum())})
            error += inside.mean() * abs(confidence - accuracy)
    return float(error), diagram


def _highest_by_question(prompts: Sequence[Prompt], scores: Sequence[float], language: str) -> list[float]:
    """The highest score of each question in a language: wordings of one question are not independent."""
    highest: dict[tuple[str, str], float] = {}
    for prompt, score in zip(prompts, scores, strict=True):
        if prompt.language == language:
            highest[prompt.question] = max(score, highest.get(prompt.question, 0.0))
    return list(highest.values())


def _above(scores: NDArray[np.float64], rank: int, statement: str) -> Threshold:
    """The threshold that flags what lies strictly above the rank-th smallest score, if anything can."""
    if scores[rank - 1] < 1:
        return Threshold(_just_above(scores[rank - 1]), True, statement)
    return Threshold(
        1.0,
        False,
        f"No guarantee: {np.mean(scores >= 1):.1%} of the {len(scores)} benign development prompts have the highest "
        "possible score, so no threshold tells them from harmful ones.",
    )


def _just_above(score: float) -> float:
    """The next number that a float32 score can take."""
    return float(min(np.nextafter(np.float32(score), np.float32(2.0)), 1.0))
