"""Intervals and tests for rates: Wilson, cluster bootstrap, paired comparison, Holm, power.

The ten translations of one question are not independent: rates over several languages are resampled by question
(`cluster_rate`), and two systems are compared on the same prompts, by question (`paired_difference`).
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import binomtest, norm, rankdata

from lasa.errors import DataError

CONFIDENCE = 0.95
RESAMPLES = 2000
_CHUNK_BYTES = 32_000_000


@dataclass(frozen=True)
class Rate:
    """A share of the scored rows with its 95 % interval; all fractions in 0..1.

    Attributes:
        value: The share, or None when nothing was scored.
        low: Lower bound of the interval, or None.
        high: Upper bound of the interval, or None.
        n: Rows that were scored: the denominator.
        unscored: Rows that could not be scored; never part of `n`.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int = 0

    def to_json(self) -> dict[str, float | int | None]:
        """The rate as it stands in `metrics.json`."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """The difference of two rates measured on the same prompts, first minus second.

    Attributes:
        value: Difference of the two rates, in -1..1.
        low: Lower bound of the 95 % interval.
        high: Upper bound of the 95 % interval.
        p_value: Two-sided p-value of "both systems have the same rate".
        test: How `p_value` was obtained.
        n: Number of pairs.
        clusters: Number of questions.
        discordant: Pairs on which the two systems differ.
        effective_n: Pairs that would carry as much information if all were independent, in `clusters..n`.
    """

    value: float
    low: float
    high: float
    p_value: float
    test: str
    n: int
    clusters: int
    discordant: int
    effective_n: float


def cluster_auroc(scores: ArrayLike, labels: ArrayLike, clusters: Sequence[Hashable]) -> Rate:
    """Area under the ROC curve with a 95 % interval for clustered rows.

    The variance is that of the sums of each cluster's placement values (Obuchowski, 1997; without clusters DeLong et
    al., 1988), the interval is symmetric on the logit scale.

    Args:
        scores: Higher for positive rows, `[rows]`.
        labels: Whether each row is positive; both kinds must occur.
        clusters: What each row belongs to; rows of one cluster are not independent.
    """
    values, positive = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    m, n = int(positive.sum()), int((~positive).sum())
    ranks = rankdata(values)
    placement = np.empty(len(values))
    placement[positive] = (ranks[positive] - rankdata(values[positive])) / n
    placement[~positive] = 1 - (ranks[~positive] - rankdata(values[~positive])) / m
    area = float(placement[positive].mean())
    numbers = np.unique([str(cluster) for cluster in clusters], return_inverse=True)[1]
    influence = np.where(positive, 1 / m, 1 / n) * (placement - area)
    variance = float((np.bincount(numbers, influence) ** 2).sum())
    if not 0 < area < 1:  # the logit is infinite: the interval of the smaller group's rows
        interval = wilson(area * min(m, n), min(m, n))
        return Rate(area, interval.low, interval.high, m + n)
    centre, spread = logit(area), norm.ppf(0.5 + CONFIDENCE / 2) * math.sqrt(variance) / (area * (1 - area))
    return Rate(area, float(expit(centre - spread)), float(expit(centre + spread)), m + n)


def wilson(successes: float, n: float, unscored: int = 0) -> Rate:
    """Wilson's score interval (1927) for a share of independent rows.

    Args:
        successes: Rows that count, in 0..n.
        n: Scored rows; 0 gives a rate without value.
        unscored: Rows left out of `n`.
    """
    if n == 0:
        return Rate(None, None, None, 0, unscored)
    share, z = successes / n, float(norm.ppf(0.5 + CONFIDENCE / 2))
    scale = 1 + z**2 / n
    centre, half = (share + z**2 / (2 * n)) / scale, z / scale * math.sqrt(share * (1 - share) / n + (z / n) ** 2 / 4)
    return Rate(float(share), max(0.0, centre - half), min(1.0, centre + half), int(n), unscored)


def cluster_rate(
    successes: ArrayLike, clusters: Sequence[Hashable], unscored: int = 0, *, resamples: int = RESAMPLES, seed: int = 0
) -> Rate:
    """A rate over rows that come in clusters, with the percentile interval of the cluster bootstrap.

    Whole clusters are drawn with replacement (Field and Welsh, 2007). Where all clusters have the same rate, most of
    all 0 or 1, every resample is the same and the bootstrap would report certainty: the interval is then Wilson's
    for as many independent rows as there are clusters.

    Args:
        successes: One 0/1 per scored row, or a grade between.
        clusters: The cluster of each row (its question).
        unscored: Rows left out.
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.
    """
    hits = np.asarray(successes, dtype=np.float64)
    if hits.size == 0:
        return Rate(None, None, None, 0, unscored)
    index = _cluster_index(clusters, hits.size)
    rows = np.bincount(index)
    hit_sums = np.bincount(index, weights=hits).astype(np.float64)
    value = float(hits.mean())
    if np.ptp(hit_sums / rows) == 0:
        interval = wilson(value * rows.size, rows.size)
        return Rate(value, interval.low, interval.high, hits.size, unscored)
    rates = _resampled_ratio(hit_sums, rows, resamples, seed)
    low, high = percentiles(rates)
    return Rate(value, low, high, hits.size, unscored)


def mcnemar_exact(first: ArrayLike, second: ArrayLike) -> float:
    """Two-sided exact McNemar test of two systems on the same prompts.

    Args:
        first: 0/1 per prompt for one system.
        second: 0/1 per prompt for the other, in the same order.

    Returns:
        The p-value; 1 when they never differ.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    differing = int(np.sum(a != b))
    return float(binomtest(int(np.sum(a & ~b)), differing).pvalue) if differing else 1.0


def paired_difference(
    first: ArrayLike, second: ArrayLike, clusters: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Compare the rates of two systems on the same prompts, by question.

    The interval is the percentile interval of a paired cluster bootstrap. The p-value is that of the randomisation
    test that swaps the two systems in whole clusters (sign flips), which holds its level with few clusters too; with
    one pair per cluster its exact form for 0/1 is McNemar's. Where all clusters show the same difference the bootstrap
    has no width: the interval is then widened by Wilson's upper bound of "none of this many clusters".

    Args:
        first: 0/1, or a grade between, per pair for one system.
        second: The same for the other.
        clusters: The cluster of each pair (its question).
        resamples: Bootstrap resamples and sign flips.
        seed: Seed of both.

    Raises:
        DataError: There is no pair.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.size == 0 or a.size != b.size:
        raise DataError(
            f"Nothing to compare: {a.size} and {b.size} rows. Give both systems' rows for the same prompts."
        )
    index = _cluster_index(clusters, a.size)
    rows = np.bincount(index)
    sums = np.bincount(index, weights=a - b).astype(np.float64)
    value = float((a - b).mean())
    discordant = int(np.sum(a != b))
    if np.ptp(sums / rows) == 0:
        width = wilson(0, rows.size).high or 0.0
        low, high = max(-1.0, value - width), min(1.0, value + width)
        effective = float(rows.size)
    else:
        differences = _resampled_ratio(sums, rows, resamples, seed)
        low, high = percentiles(differences)
        independent_variance = float(np.square(a - b).mean()) - value**2
        effective = float(np.clip(independent_variance / differences.var(), rows.size, a.size))
    if rows.size == a.size and np.isin([a, b], (0, 1)).all():
        p_value, test = mcnemar_exact(a, b), "McNemar exact"
    else:
        p_value, test = _sign_flip_p(sums, resamples, seed), "cluster sign-flip permutation"
    return Difference(value, low, high, p_value, test, a.size, rows.size, discordant, effective)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979) for asking several languages the same question."""
    raised, corrected = 0.0, [0.0] * len(p_values)
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        raised = corrected[place] = min(1.0, max(raised, (len(p_values) - rank) * p_values[place]))
    return corrected


def smallest_detectable_difference(
    n: float, discordant_share: float, *, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """The smallest difference of two paired rates that a two-sided McNemar test would find.

    Inverts the sample-size formula of Connor (1987), `n d^2 = (z_a sqrt(s) + z_b sqrt(s - d^2))^2` with s the share
    of pairs on which the systems differ; s is never smaller than the difference itself.

    Args:
        n: Independent pairs.
        discordant_share: Share of pairs on which the two systems differ, in 0..1.
        alpha: Level of the test.
        power: Probability of finding the difference.

    Returns:
        The difference, in 0..1, or None when n is too small to find any.
    """
    z_alpha, z_power = norm.ppf(1 - alpha / 2), norm.ppf(power)

    def excess(difference: float) -> float:
        share = max(discordant_share, difference)
        return float(
            difference * np.sqrt(n) - z_alpha * np.sqrt(share) - z_power * np.sqrt(max(0.0, share - difference**2))
        )

    return float(brentq(excess, 1e-12, 1.0)) if n > 0 and excess(1.0) > 0 else None


def _cluster_index(clusters: Sequence[Hashable], rows: int) -> NDArray[np.int64]:
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)
    if index.size != rows:
        raise DataError(f"{rows} rows but {index.size} clusters; give one cluster per row.")
    return index


def _resampled_ratio(
    numerators: NDArray[np.float64], denominators: NDArray[np.int64], resamples: int, seed: int
) -> NDArray[np.float64]:
    count = numerators.size
    generator = np.random.default_rng(seed)
    ratios = []
    for size in _chunks(resamples, count):
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)
        ratios.append((drawn @ numerators) / (drawn @ denominators))
    return np.concatenate(ratios)


def _sign_flip_p(sums: NDArray[np.float64], resamples: int, seed: int) -> float:
    generator = np.random.default_rng(seed)
    extreme = abs(sums.sum()) - 1e-9
    reached = 0
    for size in _chunks(resamples, sums.size):
        signs = generator.integers(0, 2, size=(size, sums.size)) * 2.0 - 1.0
        reached += int(np.sum(np.abs(signs @ sums) >= extreme))
    return (1 + reached) / (1 + resamples)


def _chunks(resamples: int, clusters: int) -> Iterator[int]:
    step = max(1, _CHUNK_BYTES // (8 * clusters))
    for start in range(0, resamples, step):
        yield min(step, resamples - start)


def percentiles(values: NDArray[np.float64]) -> tuple[float, float]:
    """The bounds between which 95 % of the values lie."""
    low, high = np.quantile(values, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)
