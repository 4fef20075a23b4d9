"""The interpreter's figures: its accuracy, over the layers and by kinds of prompts, its probabilities, its scores."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lasa.report.axes import PLACE_STYLE, WIDTH, Row, dots, legend_above, legend_below, numbers, percent_axis
from lasa.report.svg import BLUE, GREEN, INK, MUTED, VERMILION
from lasa.report.values import RateAt


def probe_accuracy(cells: Sequence[RateAt]) -> Figure:
    """Balanced accuracy of several probes, or of one on several kinds of prompts."""
    probes = list(dict.fromkeys(cell.system for cell in cells))
    figure = Figure(figsize=(WIDTH, 0.9 + 0.35 * len(probes)), layout="constrained")
    axes = figure.subplots()
    axes.set_title("Balanced accuracy (chance: 50 %)")
    axes.axvline(0.5, color=MUTED, linestyle=":", linewidth=1.2)
    dots(axes, cells, probes)
    legend_below(figure)
    return figure


def probe_by_layer(rows: Sequence[Row], used: int | None) -> Figure:
    """Balanced accuracy of the same interpreter over the layers, on seen and on unseen languages.

    Args:
        rows: One per layer: `layer`, and `seen` and `unseen`, each with `_low` and `_high`.
        used: The layer in use, or None.
    """
    figure = Figure(figsize=(WIDTH, 2.9))
    axes = figure.subplots()
    axes.axhline(0.5, color=MUTED, linestyle=":", linewidth=1.2)
    layers = [row["layer"] for row in rows]
    for place in ("seen", "unseen"):
        color, marker, label = PLACE_STYLE[place]
        middle, low, high = (numbers(rows, place + end) for end in ("", "_low", "_high"))
        axes.plot(layers, middle, color=color, marker=marker, label=label)
        axes.fill_between(layers, low, high, color=color, alpha=0.16, linewidth=0)
    if used is not None:
        axes.axvline(used, color=GREEN, linewidth=2)
    axes.set(xlabel="layer (0 = embeddings)", ylabel="balanced accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="\N{NO-BREAK SPACE}%"))
    legend_above(axes, columns=2)
    return figure


def reliability_diagram(rows: Sequence[Row]) -> Figure:
    """Share of harmful prompts against the interpreter's probability; on the diagonal it means what it says."""
    figure = Figure(figsize=(3.4, 3.1))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1.2)
    confidence, accuracy = numbers(rows, "confidence"), numbers(rows, "accuracy")
    sizes = 18 + 160 * np.sqrt(numbers(rows, "n") / max(1, max(row["n"] for row in rows)))
    axes.plot(confidence, accuracy, color=BLUE, linewidth=1.2)
    axes.scatter(confidence, accuracy, s=sizes, color=BLUE, alpha=0.8, linewidth=0)
    axes.set(xlabel="probability given by the interpreter", ylabel="share that is harmful", xlim=(-0.04, 1.04))
    axes.set_ylim(-0.04, 1.04)
    percent_axis(axes)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="\N{NO-BREAK SPACE}%"))
    return figure


def score_histogram(rows: Sequence[Row], threshold: float | None) -> Figure:
    """Scores of harmful and of benign prompts, each as a share of its own number.

    Args:
        rows: One per bin: `low`, `high`, `harmful`, `benign` (counts).
        threshold: The probability from which a prompt is flagged, or None.
    """
    figure = Figure(figsize=(WIDTH, 2.7))
    axes = figure.subplots()
    edges = [row["low"] for row in rows] + [rows[-1]["high"]]
    for name, color, hatch in (("benign", BLUE, None), ("harmful", VERMILION, "////")):
        counts = numbers(rows, name)
        shares = counts / max(1, counts.sum())
        axes.stairs(shares, edges, fill=True, color=color, alpha=0.3, linewidth=0, hatch=hatch)
        axes.stairs(shares, edges, color=color, label=f"{name} ({counts.sum():,.0f})", linewidth=1.6)
    if threshold is not None:
        axes.axvline(threshold, color=INK, linestyle="--", linewidth=1.4, label=f"threshold {threshold:.2f}")
    axes.set(xlabel="probability given by the interpreter", ylabel="share of prompts")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="\N{NO-BREAK SPACE}%"))
    legend_above(axes, columns=3)
    return figure
