"""What the curve of a layer search shows: a strong bottleneck, a weak one, or none.

With hundreds of queries S_sem compares each translation with the nearest of hundreds of other queries, so that it is
below zero on real models, and its sign decides nothing. What counts is an interior peak that stands above both ends
of the stack, translations that lie closer there than chance would put them, and a distance of S_sem from its chance
level that is larger than that of S_lang from its own.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lasa.bottleneck.geometry import ParallelIndex, nearest_translations, silhouette_samples

Strength = Literal["strong", "weak", "none"]
"""`strong`: meaning outweighs language there; `weak`: meaning comes closest to language there, and stays behind it."""

MINIMAL_PROMINENCE = 0.05
"""A peak lower than this above the ends of the curve is called flat (silhouette units, which span -1..1)."""

PERMUTATIONS = 999
LARGEST_P = 0.01


@dataclass(frozen=True)
class Chance:
    """The peak against its own nulls.

    Two: translations permuted within each language, languages as they are (`semantic`, `xsim`); and all labels dealt
    anew, so that prompts lie neither by meaning nor by language (`difference`). A model that knows none of the
    languages has the first, from names and numbers that translations share, and not the second.

    Attributes:
        semantic: Mean S_sem of the permuted prompts.
        semantic_p: Share of permutations, the observed one included, with as large an S_sem.
        xsim: Mean share of translations found among the permuted prompts.
        xsim_p: Share of permutations, the observed one included, in which as many translations are found.
        difference: Mean S_sem - S_lang where all labels are dealt anew.
        difference_p: Share of such deals, the observed one included, with as large a difference.
    """

    semantic: float
    semantic_p: float
    xsim: float
    xsim_p: float
    difference: float
    difference_p: float


@dataclass(frozen=True)
class Peak:
    """What the verdict is based on.

    Attributes:
        layer: The interior layer with the largest S_sem - S_lang.
        highest: The layer with the largest one, ends included.
        difference: S_sem - S_lang there.
        difference_low: The lower bound of its 95 % interval.
        prominence: How far it stands above the higher of the two ends.
        prominence_low: The lower bound of that.
        xsim: Share of translations found there; None where no two languages share two queries.
        layer_interval: Layers that hold the middle 95 % of the bootstrap distribution of the peak.
        first: The first layer above the embeddings.
        last: The last layer.
        chance: The peak's null.
    """

    layer: int
    highest: int
    difference: float
    difference_low: float
    prominence: float
    prominence_low: float
    xsim: float | None
    layer_interval: tuple[int, int]
    first: int
    last: int
    chance: Chance


def against_chance(unit: Tensor, index: ParallelIndex, seed: int, permutations: int = PERMUTATIONS) -> Chance:
    """S_sem, translation retrieval and S_sem - S_lang of a layer against permuted labels.

    Args:
        unit: `[N, H]` vectors of length one.
        index: Of their prompts.
        seed: Of the permutations.
        permutations: How many; no p-value is below one over one more than that.
    """
    generator = torch.Generator().manual_seed(seed)
    found = nearest_translations(unit, index)
    rows, nearest = (torch.cat(side) for side in zip(*found, strict=True)) if found else (torch.empty(0).long(),) * 2
    vectors = unit.float()

    def mean_silhouette(labels: Tensor) -> float:
        return float(silhouette_samples(vectors, labels).mean())

    def measured(queries: Tensor, dealt: Tensor) -> tuple[float, float, float]:
        xsim = float((queries[rows] == queries[nearest]).float().mean()) if found else 0.0
        difference = mean_silhouette(index.queries[dealt]) - mean_silhouette(index.languages[dealt])
        return mean_silhouette(queries), xsim, difference

    def within_languages() -> Tensor:
        queries = index.queries.clone()
        for language in range(len(index.codes)):
            own = (index.languages == language).nonzero().squeeze(1)
            queries[own] = queries[own[torch.randperm(len(own), generator=generator)]]
        return queries

    count = len(unit)
    observed = np.array(measured(index.queries, torch.arange(count)))
    null = np.array(
        [measured(within_languages(), torch.randperm(count, generator=generator)) for _ in range(permutations)]
    )
    p_values = ((1 + (null >= observed).sum(axis=0)) / (1 + permutations)).tolist()
    semantic, xsim, difference = null.mean(axis=0).tolist()
    return Chance(semantic, p_values[0], xsim, p_values[1], difference, p_values[2])


def judge(peak: Peak, num_layers: int) -> tuple[Strength, str]:
    """The finding, in a word and as sentences."""
    reason = _why_none(peak, num_layers)
    if reason:
        return "none", reason
    low, high = peak.layer_interval
    spread = f"layer {peak.layer}" if low == high else f"layers {low} to {high}"
    found = (
        f"layer {peak.layer} of {num_layers} ({peak.layer / num_layers:.0%} of the depth): S_sem - S_lang = "
        f"{peak.difference:.2f}, {peak.prominence:.2f} above the ends; 95 % interval: {spread}."
    )
    if peak.xsim is not None:
        found += f" {peak.xsim:.0%} of translations are found there ({peak.chance.xsim:.1%} by chance)."
    if peak.difference_low > 0:
        return "strong", f"The semantic bottleneck is {found}"
    return "weak", (
        f"A weak semantic bottleneck is {found} Prompts still lie closer by language than by meaning there: whether an "
        "interpreter transfers has to be measured, language by language."
    )


def _why_none(peak: Peak, num_layers: int) -> str | None:
    if peak.highest in (1, num_layers) or peak.layer in (peak.first, peak.last):
        return (
            f"No interior bottleneck: S_sem - S_lang is largest at layer {peak.highest}, an end of the stack. "
            "Meaning never separates from language in the middle of this model."
        )
    if peak.prominence < MINIMAL_PROMINENCE or peak.prominence_low <= 0:
        return (
            f"No interior bottleneck: the curve is flat. Layer {peak.layer} has the largest S_sem - S_lang, but only "
            f"{peak.prominence:.3f} above an end of the stack (at least {MINIMAL_PROMINENCE}, and more than its "
            "uncertainty, is needed)."
        )
    low, high = peak.layer_interval
    if low <= 1 or high >= num_layers - 1 > 2:
        return (
            f"No interior bottleneck can be named: the largest S_sem - S_lang is at layer {peak.layer}, but the 95 % "
            f"interval of the layer, {low} to {high}, reaches an end of the stack. Use more queries."
        )
    chance = peak.chance
    if chance.semantic_p > LARGEST_P or (peak.xsim is not None and chance.xsim_p > LARGEST_P):
        return (
            f"No interior bottleneck: even at layer {peak.layer}, where S_sem - S_lang is largest, translations lie no "
            f"closer than permuted ones (p = {max(chance.semantic_p, chance.xsim_p):.3f})."
        )
    if chance.difference_p > LARGEST_P:
        return (
            f"No semantic bottleneck: even at layer {peak.layer}, where S_sem - S_lang is largest "
            f"({peak.difference:.2f}), it is no larger than where prompts lie by neither meaning nor language "
            f"({chance.difference:.2f}; p = {chance.difference_p:.3f}). What its translations have in common "
            "there may be no more than names and numbers."
        )
    return None


def describe(
    differences: dict[int, float],
    bootstrap: NDArray[np.float64],
    best: int,
    interval: tuple[int, int],
    xsim: float | None,
    chance: Chance,
) -> Peak:
    """The peak of a curve.

    Args:
        differences: S_sem - S_lang of every layer that is defined.
        bootstrap: `[resamples, layers]` of the same layers.
        best: The interior layer with the largest difference.
        interval: Its bootstrap interval.
        xsim: Translations found there.
        chance: Its null.
    """
    above = {layer: column for column, layer in enumerate(differences) if layer > 0}
    first, last = min(above), max(above)
    ends = [layer for layer in (first, last) if layer != best]
    highest = max(above, key=lambda layer: differences[layer])
    prominence, prominence_low = 0.0, 0.0
    if ends:
        prominence = differences[best] - max(differences[end] for end in ends)
        drawn = bootstrap[:, above[best]] - bootstrap[:, [above[end] for end in ends]].max(axis=1)
        prominence_low = float(np.quantile(drawn, 0.025))
    low = float(np.quantile(bootstrap[:, above[best]], 0.025))
    return Peak(best, highest, differences[best], low, prominence, prominence_low, xsim, interval, first, last, chance)
