"""Statistics of judges: how far two of them agree, and the true rate behind what an imperfect one reports."""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from lasa.errors import DataError
from lasa.statistics import CONFIDENCE, Rate, percentiles

_Z = float(norm.ppf(0.5 + CONFIDENCE / 2))


def cohen_kappa(first: Sequence[Hashable | None], second: Sequence[Hashable | None]) -> float | None:
    """Cohen's kappa (1960) of two raters; items that either left out (None) do not count.

    Returns:
        Kappa, or None when it is undefined: no common item, or both raters used one and the same label throughout.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    n = len(pairs)
    observed = sum(a == b for a, b in pairs) / n
    left, right = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    expected = sum(left[label] * right[label] for label in left) / n**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(ratings: Sequence[Sequence[Hashable | None]]) -> float | None:
    """Krippendorff's alpha for nominal labels, any number of raters and missing ratings (Krippendorff, 2011).

    Args:
        ratings: One sequence per rater, with a label or None per item; all of the same length.

    Returns:
        Alpha, or None when it is undefined: no item rated twice, or one label throughout.
    """
    totals: Counter[Hashable] = Counter()
    agreements = 0.0
    for item in zip(*ratings, strict=True):
        counts = Counter(label for label in item if label is not None)
        raters = counts.total()
        if raters < 2:
            continue
        totals.update(counts)
        agreements += sum(count * (count - 1) for count in counts.values()) / (raters - 1)
    n = totals.total()
    by_chance = sum(count * (count - 1) for count in totals.values())
    if n == 0 or by_chance == n * (n - 1):
        return None
    return float(1 - (n - 1) * (n - agreements) / (n * (n - 1) - by_chance))


def rogan_gladen(
    observed: Rate, sensitivity: Rate, specificity: Rate, *, resamples: int = 20_000, seed: int = 0
) -> Rate:
    """The true rate behind the rate that an imperfect judge reports (Rogan and Gladen, 1978).

    `(observed + specificity - 1) / (sensitivity + specificity - 1)`, kept within 0..1. The interval carries the
    uncertainty of all three: each is drawn from its Jeffreys posterior, with as many rows as its own interval is
    worth (so that clustered rates stay wide); a draw in which the judge is no better than chance says nothing about
    the rate and counts as any rate.

    Args:
        observed: The share of answers that the judge calls positive.
        sensitivity: Share of true positives that the judge calls positive, on labelled answers.
        specificity: Share of true negatives that the judge calls negative, on labelled answers.
        resamples: Monte Carlo draws.
        seed: Seed of the draws.

    Raises:
        DataError: One of the three is unknown, or the judge does no better than chance.
    """
    if observed.value is None or sensitivity.value is None or specificity.value is None:
        raise DataError("A rate can be corrected only with scored answers and labelled positives and negatives.")
    informedness = sensitivity.value + specificity.value - 1
    if informedness <= 0:
        raise DataError(
            f"The judge's sensitivity {sensitivity.value:.2f} and specificity {specificity.value:.2f} are no better "
            "than chance; its rates cannot be corrected. Use another judge."
        )
    generator = np.random.default_rng(seed)
    rate, hit, correct = (_posterior(each, resamples, generator) for each in (observed, sensitivity, specificity))
    slope = hit + correct - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        corrected = np.clip((rate + correct - 1) / slope, 0, 1)
    corrected = np.where(slope > 0, corrected, generator.random(resamples))
    value = float(np.clip((observed.value + specificity.value - 1) / informedness, 0, 1))
    low, high = percentiles(corrected)
    return Rate(value, min(low, value), max(high, value), observed.n, observed.unscored)


def _posterior(rate: Rate, draws: int, generator: np.random.Generator) -> NDArray[np.float64]:
    assert rate.value is not None and rate.low is not None and rate.high is not None
    centre, deviation = (rate.low + rate.high) / 2, (rate.high - rate.low) / (2 * _Z)
    worth = min(float(rate.n), centre * (1 - centre) / deviation**2) if deviation > 0 else float(rate.n)
    return generator.beta(rate.value * worth + 0.5, (1 - rate.value) * worth + 0.5, size=draws)
