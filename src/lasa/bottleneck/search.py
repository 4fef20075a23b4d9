"""Stage 1: the semantic bottleneck, the layer whose geometry follows meaning rather than language.

For every layer, the hidden states of parallel prompts are L2-normalised and two mean silhouettes under the cosine
distance are taken: S_sem with queries as labels, S_lang with languages as labels. The bottleneck is
`argmax_l (S_sem(l) - S_lang(l))` (LASA, arXiv 2604.12710, section 3) over the interior layers, 1..L-1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lasa.bottleneck.geometry import (
    is_defined,
    parallel_index,
    unit_vectors,
)
from lasa.bottleneck.layer import LayerView, Measured, labelled_alone, language_left_out, measure_layer
from lasa.bottleneck.verdict import PERMUTATIONS, Peak, Strength, against_chance, describe, judge
from lasa.data.prompts import Prompt, check_parallel
from lasa.errors import DataError
from lasa.models.hidden_states import StoredStates


@dataclass(frozen=True)
class Bottleneck:
    """The outcome of the layer search.

    Attributes:
        layer: The semantic bottleneck, or None if there is no interior one.
        strength: Strong, weak or none; see `lasa.bottleneck.verdict`.
        argmax_layer: The interior layer with the largest difference, whether or not it deserves the name.
        num_layers: L.
        layer_interval: Layers that hold the middle 95 % of the bootstrap distribution of the argmax.
        verdict: The finding in words.
        peak: What it is based on.
        layers: One view per layer read, in order.
        queries: Number of queries.
        languages: Languages, each with its number of prompts.
        without_language: The argmax when one language is left out.
        controls: The argmax on harmful and on harmless prompts alone, where the labels are known.
    """

    layer: int | None
    strength: Strength
    argmax_layer: int
    num_layers: int
    layer_interval: tuple[int, int]
    verdict: str
    peak: Peak
    layers: tuple[LayerView, ...]
    queries: int
    languages: dict[str, int]
    without_language: dict[str, int]
    controls: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """As written to `bottleneck.json`."""
        return asdict(self)


def find_bottleneck(
    states: Tensor | StoredStates,
    layers: Sequence[int],
    prompts: Sequence[Prompt],
    num_layers: int,
    *,
    resamples: int = 1000,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Bottleneck:
    """Search for the semantic bottleneck, one layer in memory at a time where the states are stored.

    Args:
        states: `[prompts, layers, H]` hidden states, or a folder of them.
        layers: The layer index of each column of `states`.
        prompts: Parallel prompts: translations share their query id; translations may be missing.
        num_layers: L of the model.
        resamples: Bootstrap resamples over queries (the clusters).
        permutations: Permutations of the translations at the peak.
        seed: Of the bootstrap and the permutations.

    Raises:
        DataError: The prompts are not parallel, no interior layer was read, or every interior layer is undefined.
    """
    check_parallel(prompts)
    interior = [layer for layer in layers if 0 < layer < num_layers]
    if not interior:
        raise DataError(
            f"None of the layers {list(layers)} is an interior one: this model has {num_layers} blocks, "
            f"so layers 1 to {num_layers - 1} can be a bottleneck."
        )
    index = parallel_index(prompts)
    without = language_left_out(prompts, index.codes)
    controls = labelled_alone(prompts)
    measured: dict[int, Measured] = {}
    for layer in layers:
        unit = _unit(states, layers, layer)
        if is_defined(unit):
            measured[layer] = measure_layer(layer, unit, index, without, controls)
    candidates = [layer for layer in interior if layer in measured]
    if not candidates:
        raise DataError("In every interior layer all prompts have the same hidden state; nothing can be told apart.")
    best = _argmax({layer: measured[layer].difference for layer in candidates})
    bootstrap = _bootstrap(measured, resamples, seed)
    columns = [list(measured).index(layer) for layer in candidates]
    argmaxes = np.array(candidates)[bootstrap[2][:, columns].argmax(1)]
    interval = (int(np.quantile(argmaxes, 0.025, method="lower")), int(np.quantile(argmaxes, 0.975, method="higher")))
    differences = {layer: found.difference for layer, found in measured.items()}
    chance = against_chance(_unit(states, layers, best), index, seed, permutations)
    peak = describe(differences, bootstrap[2], best, interval, measured[best].view.xsim, chance)
    strength, verdict = judge(peak, num_layers)
    return Bottleneck(
        layer=None if strength == "none" else best,
        strength=strength,
        argmax_layer=best,
        num_layers=num_layers,
        layer_interval=interval,
        verdict=verdict,
        peak=peak,
        layers=_with_uncertainty(layers, measured, bootstrap, argmaxes),
        queries=len(set(index.queries.tolist())),
        languages={code: sum(p.language == code for p in prompts) for code in index.codes},
        without_language={
            code: _argmax({layer: measured[layer].without[code] for layer in candidates}) for code in without
        },
        controls={name: _argmax({layer: measured[layer].controls[name] for layer in candidates}) for name in controls},
    )


def _unit(states: Tensor | StoredStates, layers: Sequence[int], layer: int) -> Tensor:
    found = states[:, list(layers).index(layer)] if isinstance(states, Tensor) else states.layer(layer)
    return unit_vectors(found)


def _argmax(values: Mapping[int, float]) -> int:
    """The layer with the largest value, the first of equals."""
    return max(values, key=lambda layer: values[layer])


def _bootstrap(measured: Mapping[int, Measured], resamples: int, seed: int) -> NDArray[np.float64]:
    """`[3, resamples, layers]`: S_sem, S_lang and their difference, with queries resampled as clusters.

    What is resampled are the jackknife's pseudo-values, one per query: they hold what a query does to the silhouettes
    of the others, and a query that is drawn twice does not become its own nearest neighbour.
    """
    points = np.array([[m.view.semantic, m.view.language] for m in measured.values()]).T  # [2, layers]
    without = np.stack([m.without_query.numpy() for m in measured.values()], axis=-1)  # [2, Q, layers]
    count = without.shape[1]
    scale = math.sqrt(count * (count - 1))  # the deviation of the resamples is then the jackknife's
    deviations = scale * (without.mean(axis=1, keepdims=True) - without)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples) / count
    semantic, language = points[:, None] + draws @ deviations
    return np.stack([semantic, language, semantic - language])


def _with_uncertainty(
    layers: Sequence[int],
    measured: Mapping[int, Measured],
    bootstrap: NDArray[np.float64],
    argmaxes: NDArray[np.int64],
) -> tuple[LayerView, ...]:
    lows, highs = np.quantile(bootstrap, (0.025, 0.975), axis=1).tolist()
    deviations = bootstrap[2].std(axis=0, ddof=1).tolist()
    views = {layer: LayerView(layer) for layer in layers}
    for column, (layer, found) in enumerate(measured.items()):
        intervals = [(low[column], high[column]) for low, high in zip(lows, highs, strict=True)]
        views[layer] = replace(
            found.view,
            difference_sd=deviations[column],
            semantic_interval=intervals[0],
            language_interval=intervals[1],
            difference_interval=intervals[2],
            argmax_probability=float((argmaxes == layer).mean()),
        )
    return tuple(views.values())


def find_at_positions(
    stored: StoredStates, layers: Sequence[int], prompts: Sequence[Prompt], num_layers: int, **options: Any
) -> dict[str, Bottleneck]:
    """The search at every position that was read, the first one first; `options` are those of `find_bottleneck`."""
    return {
        position: find_bottleneck(stored.at(position), layers, prompts, num_layers, **options)
        for position in stored.positions
    }


def search_json(found: Mapping[str, Bottleneck]) -> dict[str, Any]:
    """As written to `bottleneck.json`: the first position, and beside it (`also`) the others, for information."""
    (position, first), *others = found.items()
    also = {name: one.to_json() for name, one in others}
    return {**first.to_json(), "position": position, **({"also": also} if also else {})}
