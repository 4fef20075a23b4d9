"""What the figures of a report share: sizes, percentages, legends, and dots with their intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lasa.report.svg import BLUE, VERMILION
from lasa.report.values import RateAt

WIDTH = 4.4
"""Width of a figure in inches: readable on a phone with little scrolling."""

Row = Mapping[str, Any]

PLACE_STYLE = {
    "seen": (BLUE, "o", "seen languages"), "unseen": (VERMILION, "D", "unseen languages"),
    "unchanged": (BLUE, "o", "as written"), "all": (VERMILION, "D", "changed"),
}  # fmt: skip


def dots(axes: Axes, cells: Sequence[RateAt], systems: Sequence[str]) -> None:
    """Rates with their intervals, a line for each system, a colour and marker for each place."""
    for place, (color, marker, label) in PLACE_STYLE.items():
        own = [cell for cell in cells if cell.place == place]
        offset = -0.14 if marker == "o" else 0.14
        heights = [systems.index(cell.system) + offset for cell in own]
        for y, cell in zip(heights, own, strict=True):
            if cell.rate.low is not None:
                axes.plot([cell.rate.low, as_number(cell.rate.high)], [y, y], color=color, linewidth=1.8, alpha=0.7)
        if own:
            axes.plot(
                [as_number(cell.rate.value) for cell in own],
                heights,
                color=color,
                marker=marker,
                linestyle="",
                label=label,
            )
    axes.set_yticks(range(len(systems)), short_names(systems))
    axes.set_ylim(len(systems) - 0.45, -0.55)
    percent_axis(axes)


def short_names(names: Sequence[str], longest: int = 28) -> list[str]:
    """Names cut to what fits beside an axis."""
    return [name if len(name) <= longest else f"{name[: longest - 1]}…" for name in names]


def percent_axis(axes: Axes, ticks: int = 5) -> None:
    """An x axis of shares, in per cent."""
    axes.set_xlim(-0.015, 1.015)
    axes.set_xticks(np.linspace(0, 1, ticks))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="\N{NO-BREAK SPACE}%"))


def legend_above(axes: Axes, columns: int) -> None:
    """The legend in one line above the axes."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        borderaxespad=0.3,
        handletextpad=0.5,
        handlelength=1.7,
        columnspacing=1.1,
    )


def legend_below(figure: Figure, columns: int | None = None) -> None:
    """One legend for all axes, below them."""
    found = {}
    for axes in figure.axes:
        found.update({label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)})
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns or len(found) or 1)


def numbers(rows: Sequence[Row], name: str) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """A column as numbers; what is undefined is NaN."""
    return np.array([as_number(row[name]) for row in rows], dtype=np.float64)


def as_number(value: float | None) -> float:
    """The number, or NaN."""
    return float("nan") if value is None else value
