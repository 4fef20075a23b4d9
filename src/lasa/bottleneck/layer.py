"""What one layer looks like: its silhouettes, those without a language or of one label, and what else is told of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lasa.bottleneck.geometry import (
    ParallelIndex,
    language_id_accuracy,
    parallel_index,
    retrieval_accuracy,
    silhouette_samples,
    silhouettes_without_each_query,
    similarity_to_language,
    u_score,
)
from lasa.data.prompts import Prompt, check_parallel
from lasa.errors import DataError

Interval = tuple[float, float]


@dataclass(frozen=True)
class LayerView:
    """What one layer looks like; numbers are None where the layer is undefined (all vectors equal).

    Attributes:
        layer: Layer index in 0..L.
        semantic: S_sem, mean silhouette with queries as labels.
        language: S_lang, mean silhouette with languages as labels.
        difference: S_sem - S_lang.
        difference_sd: Its bootstrap standard deviation.
        semantic_interval: 95 % bootstrap interval of S_sem.
        language_interval: 95 % bootstrap interval of S_lang.
        difference_interval: 95 % bootstrap interval of the difference.
        argmax_probability: Share of bootstrap resamples in which this layer has the largest difference.
        xsim: Cross-lingual retrieval accuracy: how often the nearest prompt in another language is the translation.
        language_id_accuracy: Accuracy of a linear language classifier on queries it did not see.
        u_score: Mean cosine similarity of translations minus that of different queries across languages (OmniGuard).
        english_similarity: Mean cosine similarity of each language's prompts to their English translation.
    """

    layer: int
    semantic: float | None = None
    language: float | None = None
    difference: float | None = None
    difference_sd: float | None = None
    semantic_interval: Interval | None = None
    language_interval: Interval | None = None
    difference_interval: Interval | None = None
    argmax_probability: float = 0.0
    xsim: float | None = None
    language_id_accuracy: float | None = None
    u_score: float | None = None
    english_similarity: dict[str, float] | None = None


@dataclass(frozen=True)
class Subset:
    """Some of the prompts, labelled anew."""

    rows: Tensor
    queries: Tensor
    languages: Tensor


@dataclass(frozen=True)
class Measured:
    """What is kept of a layer: its numbers, those without each query `[2, Q]`, and S_sem - S_lang on subsets."""

    view: LayerView
    difference: float
    without_query: Tensor
    without: Mapping[str, float]
    controls: Mapping[str, float]


def language_left_out(prompts: Sequence[Prompt], codes: Sequence[str]) -> dict[str, Subset]:
    """The prompts without each language, where they are still parallel."""
    subsets = {code: _subset(prompts, [row for row, p in enumerate(prompts) if p.language != code]) for code in codes}
    return {code: subset for code, subset in subsets.items() if subset}


def labelled_alone(prompts: Sequence[Prompt]) -> dict[str, Subset]:
    """The harmful prompts, and the harmless ones, where they are parallel."""
    labels = (("harmful", True), ("harmless", False))
    subsets = {
        name: _subset(prompts, [row for row, p in enumerate(prompts) if p.harmful is label]) for name, label in labels
    }
    return {name: subset for name, subset in subsets.items() if subset}


def _subset(prompts: Sequence[Prompt], rows: Sequence[int]) -> Subset | None:
    """The rows as a table of their own; None where they are not parallel."""
    chosen = [prompts[row] for row in rows]
    try:
        check_parallel(chosen)
    except DataError:
        return None
    index = parallel_index(chosen)
    return Subset(torch.tensor(rows), index.queries, index.languages)


def measure_layer(
    layer: int, unit: Tensor, index: ParallelIndex, without: Mapping[str, Subset], controls: Mapping[str, Subset]
) -> Measured:
    """Measure a layer.

    Args:
        layer: Its index.
        unit: `[prompts, H]` states of length one.
        index: Queries and languages of the prompts.
        without: Prompts without a language, by language.
        controls: Prompts of one label, by label.
    """
    s_sem, s_lang = (float(silhouette_samples(unit, labels).mean()) for labels in (index.queries, index.languages))
    view = LayerView(
        layer=layer,
        semantic=s_sem,
        language=s_lang,
        difference=s_sem - s_lang,
        xsim=retrieval_accuracy(unit, index),
        language_id_accuracy=language_id_accuracy(unit, index),
        u_score=u_score(unit, index),
        english_similarity=similarity_to_language(unit, index, "en"),
    )
    return Measured(
        view,
        s_sem - s_lang,
        torch.stack(silhouettes_without_each_query(unit, index)),
        {name: _difference_on(unit, subset) for name, subset in without.items()},
        {name: _difference_on(unit, subset) for name, subset in controls.items()},
    )


def _difference_on(unit: Tensor, subset: Subset) -> float:
    part = unit[subset.rows]
    return float((silhouette_samples(part, subset.queries) - silhouette_samples(part, subset.languages)).mean())
