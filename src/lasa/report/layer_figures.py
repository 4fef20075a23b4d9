"""Pictures of single layers: how near each language is to English, and t-SNE panels by language and by query.

Beside the silhouette curves (`figures.layer_curves`) these let a person see what the numbers of a layer stand for.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import Tensor

from lasa.bottleneck.geometry import is_defined, unit_vectors
from lasa.data.prompts import Prompt
from lasa.files.artifacts import atomic_path
from lasa.languages import NAMES, sort_languages
from lasa.models.hidden_states import StoredStates
from lasa.report.svg import BLUE, GREEN, GREY, INK, MUTED, PURPLE, VERMILION, YELLOW, drawing, save_figure

PANEL_QUERIES = 40
"""Queries in a t-SNE panel; more would hide each other."""

COLOURED_QUERIES = 8
"""Queries told apart by colour in the panels by query; the others are grey."""

_COLORS = (BLUE, VERMILION, GREEN, PURPLE, YELLOW, INK)
_MARKERS = ("o", "D", "^", "s", "v", "P", "X", "*", "<", ">", "p", "h")
_LINES = ("-", "--", ":", "-.")


def write_similarity_curves(bottleneck: Mapping[str, Any], folder: Path) -> bool:
    """Write each language's similarity to English by layer as `similarity_curves.svg`, `.png` and `.csv`.

    Args:
        bottleneck: The contents of `bottleneck.json`.
        folder: Where the files go.

    Returns:
        Whether there was something to draw: no prompts may have an English translation.
    """
    rows = [
        {"layer": view["layer"], **view["english_similarity"]}
        for view in bottleneck["layers"]
        if view["english_similarity"]
    ]
    if not rows:
        return False
    languages = sort_languages({name for row in rows for name in row if name != "layer"})
    with drawing():
        figure = Figure(figsize=(5.6, 3.4))
        axes = figure.subplots()
        for number, code in enumerate(languages):
            color, marker = _style(number)
            line = _LINES[number // len(_COLORS) % len(_LINES)]
            own = [(row["layer"], row[code]) for row in rows if code in row]
            axes.plot(*zip(*own, strict=True), color=color, marker=marker, linestyle=line, label=NAMES[code])
        if bottleneck.get("layer") is not None:
            axes.axvline(bottleneck["layer"], color=GREEN, linewidth=2, alpha=0.5, zorder=0)
        axes.set(xlabel="layer (0 = embeddings)", ylabel="cosine similarity to the English translation")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=1 + len(languages) // 16)
        _write(figure, rows, folder, "similarity_curves", "Similarity of each language to English over the layers.")
    return True


def write_panels(
    states: StoredStates,
    prompts: Sequence[Prompt],
    layers: Sequence[int],
    bottleneck: Mapping[str, Any],
    folder: Path,
    *,
    seed: int = 0,
) -> None:
    """Write t-SNE panels as `layer_panels.svg`, `.png` and `.csv`: a column per layer, by language and by query.

    Args:
        states: The hidden states.
        prompts: The prompts they were read from.
        layers: Layers to draw.
        bottleneck: The contents of `bottleneck.json`, for the silhouettes in the titles.
        folder: Where the files go.
        seed: Of the choice of queries and of t-SNE.
    """
    queries = _panel_queries(prompts, seed)
    rows = [row for row, prompt in enumerate(prompts) if prompt.query_id in set(queries)]
    shown = [prompts[row] for row in rows]
    views = {view["layer"]: view for view in bottleneck["layers"]}
    places = {layer: project(unit_vectors(states.layer(layer)[rows]), seed) for layer in layers}
    table = [
        {"layer": layer, "query_id": prompt.query_id, "language": prompt.language, "x": x, "y": y}
        for layer, found in places.items()
        if found is not None
        for prompt, (x, y) in zip(shown, found.tolist(), strict=True)
    ]
    with drawing():
        figure = Figure(figsize=(1.6 + 2.3 * len(layers), 5.2), layout="constrained")
        grid = figure.subplots(2, len(layers), squeeze=False)
        for column, layer in enumerate(layers):
            above, below = grid[:, column]
            above.set_title(_title(views[layer]))
            for axes, draw in ((above, _by_language), (below, _by_query)):
                axes.set_xticks([])
                axes.set_yticks([])
                if (found := places[layer]) is None:
                    axes.text(0.5, 0.5, "all states\nare equal", ha="center", color=MUTED, transform=axes.transAxes)
                else:
                    draw(axes, found, shown, queries)
        drawn = [column for column, layer in enumerate(layers) if places[layer] is not None]
        if drawn:
            grid[0, -1].legend(
                *grid[0, drawn[0]].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1.0, 0.5)
            )
        grid[0, 0].set_ylabel("by language")
        grid[1, 0].set_ylabel(f"by query ({min(COLOURED_QUERIES, len(queries))} of {len(queries)} coloured)")
        description = f"t-SNE panels of the layers {', '.join(map(str, layers))}, by language and by query."
        _write(figure, table or [{"layer": layer} for layer in layers], folder, "layer_panels", description)


def project(unit: Tensor, seed: int) -> NDArray[np.float32] | None:
    """t-SNE of `[N, H]` vectors of length one, by cosine distance, as `[N, 2]`; None where all are equal."""
    if not is_defined(unit):
        return None
    perplexity = min(30.0, (len(unit) - 1) / 3)
    places: NDArray[np.float32] = TSNE(
        metric="cosine", init="random", perplexity=perplexity, random_state=seed
    ).fit_transform(unit.float().numpy())
    return places


def _panel_queries(prompts: Sequence[Prompt], seed: int) -> list[str]:
    """A random choice of queries, those with the most translations first."""
    counts: dict[str, int] = {}
    for prompt in prompts:
        counts[prompt.query_id] = counts.get(prompt.query_id, 0) + 1
    queries = list(counts)
    random.Random(seed).shuffle(queries)
    return sorted(queries, key=lambda query: -counts[query])[:PANEL_QUERIES]


def _by_language(axes: Axes, places: NDArray[np.float32], prompts: Sequence[Prompt], queries: Sequence[str]) -> None:
    for number, code in enumerate(sort_languages({p.language for p in prompts})):
        color, marker = _style(number)
        own = places[[p.language == code for p in prompts]]
        axes.scatter(own[:, 0], own[:, 1], s=11, color=color, marker=marker, alpha=0.85, linewidth=0, label=NAMES[code])


def _by_query(axes: Axes, places: NDArray[np.float32], prompts: Sequence[Prompt], queries: Sequence[str]) -> None:
    coloured = list(queries)[:COLOURED_QUERIES]
    others = places[[p.query_id not in coloured for p in prompts]]
    axes.scatter(others[:, 0], others[:, 1], s=7, color=GREY, alpha=0.35, linewidth=0)
    for number, query in enumerate(coloured):
        color, marker = _style(number)
        own = places[[p.query_id == query for p in prompts]]
        axes.scatter(own[:, 0], own[:, 1], s=16, color=color, marker=marker, linewidth=0)


def _title(view: Mapping[str, Any]) -> str:
    if view["difference"] is None:
        return f"layer {view['layer']}"
    return f"layer {view['layer']}\nS_sem {view['semantic']:.2f}, S_lang {view['language']:.2f}"


def _style(number: int) -> tuple[str, str]:
    """Colour and marker of the n-th of a set: the colours first, then the same with another marker."""
    return _COLORS[number % len(_COLORS)], _MARKERS[number // len(_COLORS) % len(_MARKERS)]


def _write(figure: Figure, rows: Sequence[Mapping[str, object]], folder: Path, name: str, description: str) -> None:
    save_figure(figure, rows, folder, name, description)
    with atomic_path(folder / f"{name}.png") as temporary:
        figure.savefig(temporary, format="png", dpi=200, bbox_inches="tight")
