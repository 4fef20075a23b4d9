"""Stage 1: the semantic bottleneck, the layer whose geometry follows meaning rather than language.

For every layer, the hidden states of parallel prompts are L2-normalised and two mean silhouettes under the cosine
distance are taken: S_sem with queries as labels, S_lang with languages as labels. The bottleneck is
`argmax_l (S_sem(l) - S_lang(l))` (LASA, arXiv 2604.12710, section 3) over the interior layers, 1..L-1.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lasa.errors import DataError
from lasa.languages import sort_languages
from lasa.prompts import Prompt, check_parallel

Interval = tuple[float, float]

MINIMAL_PROMINENCE = 0.05
"""A peak lower than this above the ends of the curve is called flat (silhouette units, which span -1..1)."""


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
class Bottleneck:
    """The outcome of the layer search.

    Attributes:
        layer: The semantic bottleneck, or None if there is no interior one.
        argmax_layer: The interior layer with the largest difference, whether or not it deserves the name.
        num_layers: L.
        layer_interval: Layers that hold the middle 95 % of the bootstrap distribution of the argmax.
        verdict: The finding in words.
        layers: One view per layer read, in order.
        queries: Number of queries.
        languages: Languages, each with its number of prompts.
        without_language: The argmax when one language is left out.
        controls: The argmax on harmful and on harmless prompts alone, where the labels are known.
    """

    layer: int | None
    argmax_layer: int
    num_layers: int
    layer_interval: tuple[int, int]
    verdict: str
    layers: tuple[LayerView, ...]
    queries: int
    languages: dict[str, int]
    without_language: dict[str, int]
    controls: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """As written to `bottleneck.json`."""
        return asdict(self)


def find_bottleneck(
    states: Tensor,
    layers: Sequence[int],
    prompts: Sequence[Prompt],
    num_layers: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Bottleneck:
    """Search for the semantic bottleneck.

    Args:
        states: `[prompts, layers, H]` hidden states.
        layers: The layer index of each column of `states`.
        prompts: Parallel prompts: translations share their query id; translations may be missing.
        num_layers: L of the model.
        resamples: Bootstrap resamples over queries (the clusters).
        seed: Of the bootstrap.

    Raises:
        DataError: The prompts are not parallel, no interior layer was read, or every interior layer is undefined.
    """
    check_parallel(prompts)
    query_labels = _labels([p.query_id for p in prompts])
    language_labels = _labels([p.language for p in prompts])
    interior = [layer for layer in layers if 0 < layer < num_layers]
    if not interior:
        raise DataError(
            f"None of the layers {list(layers)} is an interior one: this model has {num_layers} blocks, "
            f"so layers 1 to {num_layers - 1} can be a bottleneck."
        )
    unit = {layer: _unit(states[:, column]) for column, layer in enumerate(layers)}
    defined = [layer for layer in layers if is_defined(unit[layer])]
    semantic = {layer: silhouette_samples(unit[layer], query_labels) for layer in defined}
    language = {layer: silhouette_samples(unit[layer], language_labels) for layer in defined}
    candidates = [layer for layer in interior if layer in semantic]
    if not candidates:
        raise DataError("In every interior layer all prompts have the same hidden state; nothing can be told apart.")
    difference = {layer: float((semantic[layer] - language[layer]).mean()) for layer in defined}
    best = max(candidates, key=lambda layer: difference[layer])
    bootstrap = _bootstrap(semantic, language, query_labels, resamples, seed)
    argmaxes = np.array(candidates)[bootstrap[2][:, [defined.index(c) for c in candidates]].argmax(1)]
    interval = (int(np.quantile(argmaxes, 0.025, method="lower")), int(np.quantile(argmaxes, 0.975, method="higher")))
    views = tuple(
        _view(layer, unit[layer], prompts, query_labels, language_labels, defined, semantic, language, bootstrap, argmaxes)
        for layer in layers
    )
    layer, verdict = _verdict(views, best, interval, num_layers)
    return Bottleneck(
        layer=layer,
        argmax_layer=best,
        num_layers=num_layers,
        layer_interval=interval,
        verdict=verdict,
        layers=views,
        queries=len(set(query_labels.tolist())),
        languages={code: sum(p.language == code for p in prompts) for code in _languages(prompts)},
        without_language=_leave_one_language_out(unit, prompts, candidates),
        controls=_controls(unit, prompts, candidates),
    )


def silhouette_samples(unit: Tensor, labels: Tensor) -> Tensor:
    """Silhouette of each sample under the cosine distance.

    The mean cosine distance of a sample to a cluster is one minus its dot product with the cluster's mean vector, so
    no pairwise matrix is needed: `N x C x H` operations instead of `N x N x H`. Equal to
    `sklearn.metrics.silhouette_samples(metric="cosine")`; a cluster of one sample scores 0.

    Args:
        unit: `[N, H]` float64 vectors of length one.
        labels: `[N]` integers 0..C-1.

    Returns:
        `[N]` values in -1..1.
    """
    clusters = int(labels.max()) + 1
    sizes = torch.bincount(labels, minlength=clusters).double()
    sums = torch.zeros(clusters, unit.shape[1], dtype=unit.dtype).index_add_(0, labels, unit)
    rows = torch.arange(len(unit))
    distance_sums = sizes - unit @ sums.T
    own_size = sizes[labels]
    within = distance_sums[rows, labels] / (own_size - 1).clamp(min=1)
    to_others = distance_sums / sizes
    to_others[rows, labels] = torch.inf
    nearest = to_others.min(dim=1).values
    width = torch.maximum(within, nearest)
    values = torch.where(width > 0, (nearest - within) / width, torch.zeros_like(width))
    return torch.where(own_size > 1, values, torch.zeros_like(values))


def is_defined(unit: Tensor) -> bool:
    """Whether a layer tells prompts apart at all: finite vectors that are not all the same."""
    return bool(torch.isfinite(unit).all()) and bool((unit - unit[0]).abs().max() > 1e-6)


def retrieval_accuracy(unit: Tensor, prompts: Sequence[Prompt]) -> float:
    """xsim: share of prompts whose nearest prompt in another language is their translation, over language pairs.

    Only queries that both languages of a pair have are searched (Artetxe and Schwenk, 2019, with plain cosine).
    """
    rows = _rows_by_language(prompts)
    hits, total = 0, 0
    languages = list(rows)
    for first in languages:
        for second in languages:
            shared = [q for q in rows[first] if q in rows[second]] if first != second else []
            if len(shared) < 2:
                continue
            a, b = (unit[[rows[code][q] for q in shared]] for code in (first, second))
            hits += int(((a @ b.T).argmax(dim=1) == torch.arange(len(shared))).sum())
            total += len(shared)
    return hits / total if total else float("nan")


def language_id_accuracy(unit: Tensor, queries: Tensor, languages: Tensor, folds: int = 5) -> float:
    """Accuracy of ridge regression onto language indicators, cross-validated over queries."""
    targets = F.one_hot(languages).to(unit.dtype)
    correct = 0
    for fold in range(folds):
        test = queries % folds == fold
        if not test.any() or test.all():
            continue
        x, y = unit[~test], targets[~test]
        mean, centre = x.mean(0), y.mean(0)
        x = x - mean
        if len(x) < x.shape[1]:
            weights = x.T @ torch.linalg.solve(x @ x.T + 1e-2 * torch.eye(len(x), dtype=x.dtype), y - centre)
        else:
            weights = torch.linalg.solve(x.T @ x + 1e-2 * torch.eye(x.shape[1], dtype=x.dtype), x.T @ (y - centre))
        predicted = ((unit[test] - mean) @ weights + centre).argmax(dim=1)
        correct += int((predicted == languages[test]).sum())
    return correct / len(unit)


def u_score(unit: Tensor, queries: Tensor, languages: Tensor) -> float:
    """OmniGuard's U-score: mean similarity of translations minus mean similarity of other cross-lingual pairs."""
    def total(labels: Tensor) -> tuple[float, float]:
        """Sum of similarities and number of ordered pairs that share a label (a pair with itself included)."""
        count = int(labels.max()) + 1
        sums = torch.zeros(count, unit.shape[1], dtype=unit.dtype).index_add_(0, labels, unit)
        sizes = torch.bincount(labels, minlength=count).double()
        return float((sums**2).sum()), float((sizes**2).sum())

    everything = torch.zeros_like(queries)
    both = queries * (int(languages.max()) + 1) + languages
    _, both = torch.unique(both, return_inverse=True)
    (s_all, n_all), (s_query, n_query) = total(everything), total(queries)
    (s_language, n_language), (s_both, n_both) = total(languages), total(both)
    same_sum, same_count = s_query - s_both, n_query - n_both
    other_sum = s_all - s_query - s_language + s_both
    other_count = n_all - n_query - n_language + n_both
    if same_count <= 0 or other_count <= 0:
        return float("nan")
    return same_sum / same_count - other_sum / other_count


def _unit(states: Tensor) -> Tensor:
    return F.normalize(states.double(), dim=-1)


def _labels(values: Sequence[str]) -> Tensor:
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return torch.tensor([numbers[value] for value in values])


def _languages(prompts: Sequence[Prompt]) -> list[str]:
    return sort_languages({p.language for p in prompts})


def _rows_by_language(prompts: Sequence[Prompt]) -> dict[str, dict[str, int]]:
    rows: dict[str, dict[str, int]] = {code: {} for code in _languages(prompts)}
    for row, prompt in enumerate(prompts):
        rows[prompt.language][prompt.query_id] = row
    return rows


def _bootstrap(
    semantic: dict[int, Tensor], language: dict[int, Tensor], queries: Tensor, resamples: int, seed: int
) -> NDArray[np.float64]:
    """`[3, resamples, layers]`: S_sem, S_lang and their difference, with queries resampled as clusters.

    Each prompt keeps its silhouette in the full set; what is resampled is which queries the mean is taken over.
    """
    count = int(queries.max()) + 1
    sizes = torch.bincount(queries, minlength=count).double().numpy()
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)

    def means(values: dict[int, Tensor]) -> NDArray[np.float64]:
        sums = np.stack(
            [torch.zeros(count, dtype=v.dtype).index_add_(0, queries, v).numpy() for v in values.values()], axis=1
        )
        return np.asarray(draws @ sums / (draws @ sizes)[:, None])

    first, second = means(semantic), means(language)
    return np.stack([first, second, first - second])


def _view(
    layer: int,
    unit: Tensor,
    prompts: Sequence[Prompt],
    queries: Tensor,
    languages: Tensor,
    defined: Sequence[int],
    semantic: dict[int, Tensor],
    language: dict[int, Tensor],
    bootstrap: NDArray[np.float64],
    argmaxes: NDArray[np.int64],
) -> LayerView:
    if layer not in semantic:
        return LayerView(layer)
    column = bootstrap[:, :, list(defined).index(layer)]
    intervals: list[Interval] = [(float(low), float(high)) for low, high in np.quantile(column, (0.025, 0.975), axis=1).T]
    s_sem, s_lang = float(semantic[layer].mean()), float(language[layer].mean())
    return LayerView(
        layer=layer,
        semantic=s_sem,
        language=s_lang,
        difference=s_sem - s_lang,
        difference_sd=float(column[2].std(ddof=1)),
        semantic_interval=intervals[0],
        language_interval=intervals[1],
        difference_interval=intervals[2],
        argmax_probability=float((argmaxes == layer).mean()),
        xsim=_finite(retrieval_accuracy(unit, prompts)),
        language_id_accuracy=language_id_accuracy(unit, queries, languages),
        u_score=_finite(u_score(unit, queries, languages)),
        english_similarity=_english_similarity(unit, prompts),
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _english_similarity(unit: Tensor, prompts: Sequence[Prompt]) -> dict[str, float]:
    rows = _rows_by_language(prompts)
    english = rows.get("en", {})
    curves = {}
    for code, own in rows.items():
        shared = [q for q in own if q in english] if code != "en" else []
        if shared:
            pairs = unit[[own[q] for q in shared]] * unit[[english[q] for q in shared]]
            curves[code] = float(pairs.sum(dim=1).mean())
    return curves


def _argmax_on(unit: dict[int, Tensor], prompts: Sequence[Prompt], rows: Sequence[int], candidates: Sequence[int]) -> int:
    subset = [prompts[row] for row in rows]
    check_parallel(subset)
    queries, languages = _labels([p.query_id for p in subset]), _labels([p.language for p in subset])
    index = torch.tensor(rows)

    def difference(layer: int) -> float:
        part = unit[layer][index]
        return float((silhouette_samples(part, queries) - silhouette_samples(part, languages)).mean())

    return max(candidates, key=difference)


def _leave_one_language_out(
    unit: dict[int, Tensor], prompts: Sequence[Prompt], candidates: Sequence[int]
) -> dict[str, int]:
    found = {}
    for code in _languages(prompts):
        rows = [row for row, p in enumerate(prompts) if p.language != code]
        try:
            found[code] = _argmax_on(unit, prompts, rows, candidates)
        except DataError:
            continue  # what is left is not parallel
    return found


def _controls(unit: dict[int, Tensor], prompts: Sequence[Prompt], candidates: Sequence[int]) -> dict[str, int]:
    found = {}
    for name, label in (("harmful", True), ("harmless", False)):
        rows = [row for row, p in enumerate(prompts) if p.harmful is label]
        try:
            found[name] = _argmax_on(unit, prompts, rows, candidates)
        except DataError:
            continue  # no such prompts, or not parallel
    return found


def _verdict(
    views: Sequence[LayerView], best: int, interval: tuple[int, int], num_layers: int
) -> tuple[int | None, str]:
    """The bottleneck and the finding in words; None where the curve has no interior peak worth the name."""
    by_layer = {view.layer: view for view in views if view.difference is not None and view.layer > 0}
    peak = by_layer[best]
    assert peak.difference is not None and peak.semantic is not None
    first, last = min(by_layer), max(by_layer)
    ends = [by_layer[end].difference or 0.0 for end in (first, last) if end != best]
    highest = max(by_layer, key=lambda layer: by_layer[layer].difference or 0.0)
    prominence = peak.difference - max(ends) if ends else 0.0
    if highest in (1, num_layers) or best in (first, last):
        return None, (
            f"No interior bottleneck: S_sem - S_lang is largest at layer {highest}, an end of the stack. "
            "Meaning never separates from language in the middle of this model."
        )
    if prominence < MINIMAL_PROMINENCE:
        return None, (
            f"No interior bottleneck: the curve is flat. Layer {best} has the largest S_sem - S_lang, but only "
            f"{prominence:.3f} above an end of the stack (at least {MINIMAL_PROMINENCE} is needed)."
        )
    if interval[0] <= 1 or interval[1] >= num_layers - 1 > 2:
        return None, (
            f"No interior bottleneck can be named: the largest S_sem - S_lang is at layer {best}, but the 95 % "
            f"interval of the layer, {interval[0]} to {interval[1]}, reaches an end of the stack. Use more queries."
        )
    if peak.semantic <= 0:
        return None, (
            f"No interior bottleneck: even at layer {best}, where S_sem - S_lang is largest, translations do not "
            f"cluster by meaning (S_sem = {peak.semantic:.2f})."
        )
    spread = f"layer {best}" if interval[0] == interval[1] else f"layers {interval[0]} to {interval[1]}"
    return best, (
        f"The semantic bottleneck is layer {best} of {num_layers} ({best / num_layers:.0%} of the depth): "
        f"S_sem - S_lang = {peak.difference:.2f}, {prominence:.2f} above the ends; 95 % interval: {spread}."
    )
