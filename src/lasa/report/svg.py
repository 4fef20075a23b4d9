"""From a matplotlib figure to files a person can keep (SVG, CSV) and to SVG that follows the page's theme.

Figures are drawn in the fixed colours below. On disk they stay so; in the page each colour becomes a CSS variable.
"""

import base64
import csv
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from lasa.files.artifacts import write_text

INK, MUTED, GRID, PAPER = "#1b1e22", "#5c636b", "#d9dce0", "#ffffff"
BLUE, VERMILION, GREEN, PURPLE, YELLOW, GREY = "#0072b2", "#d55e00", "#009e73", "#b0578d", "#c9a400", "#9aa0a6"
"""Data colours after Okabe and Ito (2008), told apart under the common kinds of colour blindness."""

_VARIABLES = {
    INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--grid)", BLUE: "var(--blue)", VERMILION: "var(--vermilion)",
    PAPER: "none", GREEN: "var(--green)", PURPLE: "var(--purple)", YELLOW: "var(--yellow)", GREY: "var(--grey)",
}  # fmt: skip

_LARGEST, _SMALLEST = 1.75, 1.0
"""CSS pixels per point of a figure in the page; below the smaller, it scrolls, so that its text stays readable."""

_SETTINGS = {
    "svg.fonttype": "none", "text.parse_math": False, "font.family": "sans-serif", "font.size": 9,
    "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": GRID, "axes.titlesize": 9.5, "axes.titlecolor": INK,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.grid": True, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.unicode_minus": True,
    "grid.color": GRID, "grid.linewidth": 0.7, "xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK, "xtick.major.size": 0, "ytick.major.size": 0, "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5, "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.8,
    "lines.markersize": 4, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": PAPER,
    "hatch.color": MUTED, "hatch.linewidth": 0.6,
}  # fmt: skip


@dataclass(frozen=True)
class FigureFiles:
    """A figure of the report.

    Attributes:
        name: File name without its ending.
        inline: The SVG element for the page.
        svg: The SVG file as a data address, for downloading from the page alone.
        csv: The CSV file likewise.
    """

    name: str
    inline: Markup
    svg: str
    csv: str


@contextmanager
def drawing() -> Iterator[None]:
    """The look of all figures; draw and save inside."""
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's fonts have it
        yield


def save_figure(
    figure: Figure, rows: Sequence[Mapping[str, object]], folder: Path, name: str, description: str
) -> FigureFiles:
    """Write `name.svg` and `name.csv` and prepare the figure for the page.

    Args:
        figure: A figure drawn inside `drawing`.
        rows: The numbers that it shows.
        folder: Where the two files go.
        name: File name without its ending.
        description: What a person who cannot see the figure is told.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    svg, table = buffer.getvalue(), _csv(rows)
    write_text(folder / f"{name}.svg", svg)
    write_text(folder / f"{name}.csv", table)
    return FigureFiles(
        name, _inline(svg, description), _data_address("image/svg+xml", svg), _data_address("text/csv", table)
    )


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _inline(svg: str, description: str) -> Markup:
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'<g id="[a-zA-Z]+_[\d.]+">', "<g>", element)  # repeated in every figure
    element = re.sub(r' (?:width|height)="[\d.]+pt"', "", element, count=2)
    for color, variable in _VARIABLES.items():
        element = re.sub(color, variable, element, flags=re.IGNORECASE)
    width = float(svg.split('width="', 1)[1].split("pt", 1)[0])
    size = f"max-width: {_LARGEST * width:.0f}px; min-width: {_SMALLEST * width:.0f}px"
    label = f'<svg role="img" aria-label="{escape(description)}" style="{size}"'
    return Markup(element.replace("<svg", label, 1))


def _data_address(kind: str, text: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"
