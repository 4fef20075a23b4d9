"""The static figures of a report: layer curves, rates with intervals, outcome bars, comparisons.

Each function draws the rows that are also written as the figure's CSV file; those that return a figure are called
inside `svg.drawing()`.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lasa.files.artifacts import atomic_path
from lasa.report.axes import WIDTH, Row, as_number, dots, legend_above, legend_below, numbers, percent_axis, short_names
from lasa.report.layer_tables import layer_rows
from lasa.report.svg import BLUE, GREEN, GREY, INK, MUTED, PURPLE, VERMILION, YELLOW, drawing, save_figure
from lasa.report.values import OUTCOMES, RateAt, place_name

_OUTCOME_COLORS = {
    "refused": BLUE, "complied": VERMILION, "irrelevant": YELLOW, "wrong_language": PURPLE, "empty": MUTED,
    "unscored": GREY,
}  # fmt: skip
_SYSTEM_STYLES = ((BLUE, "o"), (VERMILION, "D"), (GREEN, "^"), (PURPLE, "s"), (YELLOW, "v"), (INK, "P"))


def layer_curves(rows: Sequence[Row], chosen: int | None, layer_interval: Sequence[int] | None) -> Figure:
    """S_sem, S_lang and their difference over the layers, with 95 % bands and the chosen layer.

    Args:
        rows: One per layer: `layer`, and `semantic`, `language`, `difference`, each with `_low` and `_high`; undefined
            numbers are None.
        chosen: The semantic bottleneck, or None.
        layer_interval: The layers that the bottleneck may be (95 % interval), or None.
    """
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots()
    layers = [row["layer"] for row in rows]
    if layer_interval and chosen is not None:
        axes.axvspan(layer_interval[0] - 0.4, layer_interval[1] + 0.4, color=GREEN, alpha=0.13, linewidth=0)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    for name, label, color, marker, line in (
        ("semantic", "by meaning (S_sem)", BLUE, "o", "-"),
        ("language", "by language (S_lang)", VERMILION, "s", "--"),
        ("difference", "difference", INK, "D", "-"),
    ):
        middle, low, high = (numbers(rows, name + end) for end in ("", "_low", "_high"))
        axes.plot(layers, middle, color=color, marker=marker, linestyle=line, label=label)
        axes.fill_between(layers, low, high, color=color, alpha=0.16, linewidth=0)
    if chosen is not None:
        axes.axvline(chosen, color=GREEN, linewidth=2)
        axes.annotate(
            f"layer {chosen}", (chosen, 1), (4, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
            va="top", color=GREEN, weight="bold",
        )  # fmt: skip
    axes.set(xlabel="layer (0 = embeddings)", ylabel="silhouette")
    axes.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_above(axes, columns=3)
    return figure


def write_layer_curves(bottleneck: Mapping[str, Any], folder: Path) -> None:
    """Write the curves of a layer search as `layer_curves.svg`, `.png` and `.csv`.

    Args:
        bottleneck: The contents of `bottleneck.json`.
        folder: Where the files go.
    """
    rows = layer_rows(dict(bottleneck))
    with drawing():
        figure = layer_curves(rows, bottleneck.get("layer"), bottleneck.get("layer_interval"))
        save_figure(figure, rows, folder, "layer_curves", "Silhouette by meaning and by language over the layers.")
        with atomic_path(folder / "layer_curves.png") as temporary:
            figure.savefig(temporary, format="png", dpi=200, bbox_inches="tight")


def asr_heatmap(cells: Sequence[RateAt], places: Sequence[str], seen: frozenset[str] | None) -> Figure:
    """Attack success by language (rows) and system (columns), the seen languages above the unseen."""
    systems = list(dict.fromkeys(cell.system for cell in cells))
    values = {(cell.place, cell.system): cell.rate.value for cell in cells}
    grid = np.array([[as_number(values.get((place, system))) for system in systems] for place in places])
    figure = Figure(figsize=(max(3.2, 1.4 + 0.85 * len(systems)), 0.9 + 0.3 * len(places)))
    axes = figure.subplots()
    ramp = LinearSegmentedColormap.from_list("heat", ["#f4f4f2", "#e8a27c", "#7f2704"])
    axes.imshow(grid, cmap=ramp, vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        text = "–" if np.isnan(value) else f"{100 * value:.0f}"
        axes.text(column, row, text, ha="center", va="center", color="white" if value > 0.65 else "#101214")
    if seen is not None:
        boundary = sum(place in seen for place in places) - 0.5
        axes.axhline(boundary, color="#101214", linewidth=1.6)
    axes.grid(False)
    names = [place_name(place) + ("" if seen is None or place not in seen else " (seen)") for place in places]
    axes.set_yticks(range(len(places)), names)
    axes.set_xticks(range(len(systems)), short_names(systems), rotation=30, ha="left")
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xlabel("attack success, % of scored harmful prompts; lower is better")
    return figure


def rates_by_system(cells: Sequence[RateAt], titles: Mapping[str, str]) -> Figure:
    """Rates of each system with their intervals, two places beside each other.

    Args:
        cells: The rates.
        titles: Of the panels, one per metric.
    """
    systems = list(dict.fromkeys(cell.system for cell in cells))
    figure = Figure(figsize=(WIDTH, len(titles) * (0.55 + 0.3 * len(systems)) + 0.3), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(len(titles), squeeze=False).flat, titles.items(), strict=True):
        own = [cell for cell in cells if cell.metric == metric]
        axes.set_title(title)
        dots(axes, own, systems)
    legend_below(figure)
    return figure


def trade_off(rows: Sequence[Row]) -> Figure:
    """Attack success against helpful answers of the settings that were tried, a colour and marker for each system.

    Args:
        rows: One per setting: `system`, `asr`, `helpful` (fractions), `chosen`.
    """
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, (color, marker) in zip(dict.fromkeys(row["system"] for row in rows), cycle(_SYSTEM_STYLES), strict=False):
        own = [row for row in rows if row["system"] == name]
        for row in own:
            face = color if row["chosen"] else "none"
            axes.plot(
                [row["helpful"]], [row["asr"]], color=color, marker=marker, markersize=7, linestyle="",
                markerfacecolor=face, label=name if row is own[0] else None,
            )  # fmt: skip
    axes.set_xlabel("helpful answers")
    axes.set_ylabel("attack success")
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="\N{NO-BREAK SPACE}%"))
    percent_axis(axes)
    legend_below(figure, columns=2)
    return figure


def outcome_bars(rows: Sequence[Row], panel: str, bar: str, columns: int = 1) -> Figure:
    """What came of harmful prompts: stacked shares of the outcomes.

    Args:
        rows: One per panel and bar, with a count for each of `OUTCOMES`.
        panel: The column that a panel shows one value of, such as `where`.
        bar: The column that a bar shows one value of, such as `system`.
        columns: Panels beside each other.
    """
    panels, bars = (list(dict.fromkeys(row[name] for row in rows)) for name in (panel, bar))
    counts = {(row[panel], row[bar]): [row[outcome] for outcome in OUTCOMES] for row in rows}
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, lines * (0.7 + 0.22 * len(bars)) + 0.3), layout=ConstrainedLayoutEngine(h_pad=0.1))
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes, name in zip_longest(grid.flat, panels):
        if name is None:
            axes.set_visible(False)
            continue
        shares = np.array([counts.get((name, key), [0] * len(OUTCOMES)) for key in bars], dtype=np.float64)
        shares /= np.maximum(1, shares.sum(axis=1, keepdims=True))
        for outcome, share, left in zip(OUTCOMES, shares.T, (shares.cumsum(axis=1) - shares).T, strict=True):
            axes.barh(
                range(len(bars)), share, left=left, height=0.72, color=_OUTCOME_COLORS[outcome],
                label=outcome.replace("_", " "), hatch="////" if outcome == "unscored" else None, linewidth=0,
            )  # fmt: skip
        axes.set_title(*short_names([place_name(name)]))
        axes.grid(False)
        percent_axis(axes, ticks=5 if columns == 1 else 3)
    grid[0, 0].set_yticks(range(len(bars)), short_names([place_name(key) for key in bars]))
    grid[0, 0].invert_yaxis()
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, handlelength=1, columnspacing=1.2)
    return figure


def forest(rows: Sequence[Row]) -> Figure:
    """Paired differences between two systems with their intervals.

    Args:
        rows: One per comparison: `comparison` (what is compared), `difference`, `low`, `high` (fractions).
    """
    figure = Figure(figsize=(WIDTH, 0.6 + 0.42 * len(rows)))
    axes = figure.subplots()
    axes.axvline(0, color=MUTED, linewidth=1)
    for y, row in enumerate(rows):
        axes.annotate(row["comparison"], (0, y - 0.42), xycoords=("axes fraction", "data"), va="center", fontsize=8.5)
        clear = row["low"] is not None and (row["low"] > 0 or row["high"] < 0)
        axes.plot([row["low"], row["high"]], [y, y], color=BLUE if clear else GREY, linewidth=2)
        axes.plot([row["difference"]], [y], color=BLUE if clear else GREY, marker="o", markersize=5.5)
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 0.6, -0.8)
    axes.set_xlabel("percentage points, first minus second")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    return figure
