"""The geometry of one layer: how its hidden states arrange parallel prompts, by meaning and by language.

All measures take vectors of length one, so that a dot product is a cosine similarity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lasa.data.prompts import Prompt
from lasa.languages import sort_languages

IDENTICAL = 1e-12
"""Cosine distances below this are rounding, not distance."""


@dataclass(frozen=True)
class ParallelIndex:
    """Which prompts share a query or a language, and which are translations of each other.

    Attributes:
        queries: `[N]` query numbers 0..Q-1.
        languages: `[N]` language numbers 0..C-1, in the order of `codes`.
        codes: Language codes.
        translations: For each ordered pair of languages, the rows of the queries that both have: first language,
            second language.
    """

    queries: Tensor
    languages: Tensor
    codes: tuple[str, ...]
    translations: dict[tuple[str, str], tuple[Tensor, Tensor]]


def parallel_index(prompts: Sequence[Prompt]) -> ParallelIndex:
    """Index a table of parallel prompts; translations may be missing."""
    codes = sort_languages({p.language for p in prompts})
    numbers = {query: number for number, query in enumerate(dict.fromkeys(p.query_id for p in prompts))}
    rows: dict[str, dict[str, int]] = {code: {} for code in codes}
    for row, prompt in enumerate(prompts):
        rows[prompt.language][prompt.query_id] = row
    translations = {}
    for first in codes:
        for second in codes:
            shared = [query for query in rows[first] if query in rows[second]] if first != second else []
            if shared:
                sides = (torch.tensor([rows[code][query] for query in shared]) for code in (first, second))
                translations[first, second] = (next(sides), next(sides))
    return ParallelIndex(
        queries=torch.tensor([numbers[p.query_id] for p in prompts]),
        languages=torch.tensor([codes.index(p.language) for p in prompts]),
        codes=tuple(codes),
        translations=translations,
    )


def unit_vectors(states: Tensor) -> Tensor:
    """`[N, H]` hidden states of any dtype as float64 vectors of length one."""
    return F.normalize(states.double(), dim=-1)


def is_defined(unit: Tensor) -> bool:
    """Whether a layer tells prompts apart at all: finite vectors that are not all the same."""
    return bool(torch.isfinite(unit).all()) and bool((unit - unit[0]).abs().max() > 1e-6)


def silhouette_samples(unit: Tensor, labels: Tensor) -> Tensor:
    """Silhouette of each sample under the cosine distance.

    The mean cosine distance of a sample to a cluster is one minus its dot product with the cluster's mean vector, so
    no pairwise matrix is needed: `N x C x H` operations instead of `N x N x H`. Equal to
    `sklearn.metrics.silhouette_samples(metric="cosine")`; a cluster of one sample scores 0.

    Args:
        unit: `[N, H]` float64 vectors of length one.
        labels: `[N]` integers 0..C-1, none of them unused.

    Returns:
        `[N]` values in -1..1.
    """
    own_size, within, to_others = _cluster_distances(unit, labels)
    return _silhouettes(own_size, within, to_others.min(dim=1).values)


def silhouettes_without_each_query(unit: Tensor, index: ParallelIndex) -> tuple[Tensor, Tensor]:
    """Mean silhouettes by query and by language when each query in turn is left out; for the jackknife.

    By query this is exact. By language the distances to each language, which lose one translation, are followed to
    first order, so that no pairwise distance is needed (the infinitesimal jackknife; Efron, 1982).

    Args:
        unit: `[N, H]` float64 vectors of length one.
        index: Of their prompts.

    Returns:
        `[Q]` each.
    """
    queries = index.queries
    sizes = torch.bincount(queries).to(unit.dtype)

    def by_query(values: Tensor, groups: Tensor = queries) -> Tensor:
        return torch.zeros_like(sizes).index_add_(0, groups, values)

    own_size, within, to_others = _cluster_distances(unit, queries)
    nearest = to_others.topk(2, dim=1, largest=False)
    values, without_nearest = (_silhouettes(own_size, within, nearest.values[:, rank]) for rank in (0, 1))
    semantic = values.sum() - by_query(values) + by_query(without_nearest - values, nearest.indices[:, 0])
    values, change = _lost_translations(unit, index)
    language = values.sum() - by_query(values) + by_query(change)
    return semantic / (len(unit) - sizes), language / (len(unit) - sizes)


def retrieval_accuracy(unit: Tensor, index: ParallelIndex) -> float | None:
    """xsim: share of prompts whose nearest prompt in another language is their translation, over language pairs.

    Only queries that both languages of a pair have are searched (Artetxe and Schwenk, 2019, with plain cosine); None
    where no pair has two of them.
    """
    found = nearest_translations(unit, index)
    hits = [(index.queries[rows] == index.queries[nearest]).float() for rows, nearest in found]
    return float(torch.cat(hits).mean()) if hits else None


def nearest_translations(unit: Tensor, index: ParallelIndex) -> list[tuple[Tensor, Tensor]]:
    """For each ordered pair of languages that share two queries or more: rows, and the nearest row in the other."""
    return [
        (first, second[(unit[first] @ unit[second].T).argmax(dim=1)])
        for first, second in index.translations.values()
        if len(first) > 1
    ]


def language_id_accuracy(unit: Tensor, index: ParallelIndex, folds: int = 5) -> float:
    """Accuracy of ridge regression onto language indicators, cross-validated over queries."""
    vectors = unit.float()
    targets = F.one_hot(index.languages).float()
    correct = 0
    for fold in range(folds):
        test = index.queries % folds == fold
        if test.any() and not test.all():
            scores = _ridge(vectors[~test], targets[~test], vectors[test])
            correct += int((scores.argmax(dim=1) == index.languages[test]).sum())
    return correct / len(unit)


def u_score(unit: Tensor, index: ParallelIndex) -> float | None:
    """OmniGuard's U-score: mean similarity of translations minus mean similarity of other cross-lingual pairs.

    None where there are no such pairs (Verma et al., 2025).
    """

    def pairs(labels: Tensor) -> tuple[float, float]:
        """Sum of similarities, and number, of ordered pairs that share a label (a prompt with itself included)."""
        sizes, sums = _cluster_sums(unit, labels)
        return float((sums**2).sum()), float((sizes**2).sum())

    both = torch.unique(index.queries * len(index.codes) + index.languages, return_inverse=True)[1]
    all_sum, all_count = pairs(torch.zeros_like(both))
    query_sum, query_count = pairs(index.queries)
    language_sum, language_count = pairs(index.languages)
    both_sum, both_count = pairs(both)
    same_count = query_count - both_count
    other_count = all_count - query_count - language_count + both_count
    if same_count <= 0 or other_count <= 0:
        return None
    return (query_sum - both_sum) / same_count - (all_sum - query_sum - language_sum + both_sum) / other_count


def similarity_to_language(unit: Tensor, index: ParallelIndex, language: str) -> dict[str, float]:
    """Mean cosine similarity of each other language's prompts to their translation in one language."""
    return {
        code: float((unit[rows] * unit[translations]).sum(dim=1).mean())
        for (code, other), (rows, translations) in index.translations.items()
        if other == language
    }


def _cluster_distances(unit: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Size of each sample's cluster `[N]`, its mean distance within it `[N]` and to each other cluster `[N, C]`."""
    sizes, sums = _cluster_sums(unit, labels)
    rows = torch.arange(len(unit))
    distance_sums = sizes - unit @ sums.T
    distance_sums[distance_sums < IDENTICAL * sizes] = 0
    own_size = sizes[labels]
    within = distance_sums[rows, labels] / (own_size - 1).clamp(min=1)
    to_others = distance_sums / sizes
    to_others[rows, labels] = torch.inf
    return own_size, within, to_others


def _silhouettes(own_size: Tensor, within: Tensor, nearest: Tensor) -> Tensor:
    """Silhouettes from mean distances within the own cluster and to the nearest other (infinite: there is none)."""
    width = torch.maximum(within, nearest)
    defined = (own_size > 1) & (width > 0) & width.isfinite()
    return torch.where(defined, (nearest - within) / width, torch.zeros_like(width))


def _lost_translations(unit: Tensor, index: ParallelIndex) -> tuple[Tensor, Tensor]:
    """Silhouettes by language `[N]`, and by how much those of other queries change when each sample is lost `[N]`.

    Without sample j, a mean distance m over n samples becomes m + (m - d_j) / (n - 1).
    """
    languages = index.languages
    rows = torch.full((int(index.queries.max()) + 1, len(index.codes)), -1)
    rows[index.queries, languages] = torch.arange(len(unit))
    own_size, within, to_others = _cluster_distances(unit, languages)
    nearest, neighbours = to_others.min(dim=1)
    values = _silhouettes(own_size, within, nearest)
    width = torch.maximum(within, nearest)
    defined = (own_size > 1) & (width > 0)
    tight = within <= nearest
    by_within = torch.where(defined, -torch.where(tight, 1 / width, nearest / width**2), 0)
    by_nearest = torch.where(defined, torch.where(tight, within / width**2, 1 / width), 0)
    change = torch.zeros_like(values)
    neighbour_size = torch.bincount(languages).to(unit.dtype)[neighbours]
    for labels, slope, mean, size in (
        (languages, by_within, within, own_size - 1),
        (neighbours, by_nearest, nearest, neighbour_size),
    ):
        weight = slope / (size - 1).clamp(min=1)
        constants, vectors = (
            torch.zeros(int(languages.max()) + 1, *part.shape[1:], dtype=unit.dtype).index_add_(0, labels, part)
            for part in (weight * (mean - 1), weight[:, None] * unit)
        )
        change += constants[languages] + (unit * vectors[languages]).sum(dim=1)
        same = rows[index.queries, labels]  # the query's own sample there is left out together with this one
        distance = 1 - (unit * unit[same]).sum(dim=1)
        change -= torch.where(same >= 0, weight * (mean - distance), 0)
    return values, change


def _cluster_sums(unit: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Size `[C]` and sum `[C, H]` of each cluster."""
    sizes = torch.bincount(labels).to(unit.dtype)
    return sizes, torch.zeros(len(sizes), unit.shape[1], dtype=unit.dtype).index_add_(0, labels, unit)


def _ridge(inputs: Tensor, targets: Tensor, test: Tensor, strength: float = 1e-2) -> Tensor:
    """Predictions of ridge regression with an intercept, solved in the smaller of rows and columns."""
    mean, centre = inputs.mean(0), targets.mean(0)
    inputs, targets = inputs - mean, targets - centre
    if len(inputs) < inputs.shape[1]:
        kernel = inputs @ inputs.T + strength * torch.eye(len(inputs))
        weights = inputs.T @ torch.linalg.solve(kernel, targets)
    else:
        covariance = inputs.T @ inputs + strength * torch.eye(inputs.shape[1])
        weights = torch.linalg.solve(covariance, inputs.T @ targets)
    predicted: Tensor = (test - mean) @ weights + centre
    return predicted
