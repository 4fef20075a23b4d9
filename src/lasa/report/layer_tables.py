"""Layer by layer: the table of stage 1, and the rows of numbers that the curves over the layers draw."""

from typing import Any

from lasa.report.run_folder import Document
from lasa.report.table import Rows, Table
from lasa.report.values import GROUPS, decimal, percent, rate_of


def layer_rows(bottleneck: Document) -> Rows:
    """The layer curves with their bands; where only a standard deviation is known, the band is 1.96 of them wide."""
    rows = []
    for view in bottleneck.get("layers") or []:
        row: dict[str, Any] = {"layer": view["layer"]}
        for name in ("semantic", "language", "difference"):
            value, deviation = view.get(name), view.get(f"{name}_sd")
            low, high = view.get(f"{name}_interval") or (None, None)
            if low is None and value is not None and deviation is not None:
                low, high = value - 1.96 * deviation, value + 1.96 * deviation
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        for name in ("argmax_probability", "xsim", "language_id_accuracy", "u_score"):
            row[name] = view.get(name)
        rows.append(row)
    return rows


def layer_table(rows: Rows, chosen: int | None) -> Table:
    """All numbers of the layer search."""
    return Table(
        "All numbers of the layer search",
        "S_sem: how well translations of one question cluster. S_lang: how well prompts of one language "
        "cluster. The bottleneck is where the first most exceeds the second. In brackets: 95 % interval.",
        (
            "Layer", "S_sem", "S_lang", "Difference", "Chosen in resamples", "Translation found (xsim)",
            "Language recognised", "U-score",
        ),
        [
            (
                str(row["layer"]),
                *(decimal(row[n], row[f"{n}_low"], row[f"{n}_high"]) for n in ("semantic", "language", "difference")),
                *(percent(row[name]) for name in ("argmax_probability", "xsim", "language_id_accuracy")),
                decimal(row["u_score"]),
            )
            for row in rows
        ],
        frozenset(index for index, row in enumerate(rows) if row["layer"] == chosen),
        marks="the bottleneck",
    )  # fmt: skip


def probe_layer_rows(interpreter: Document) -> Rows:
    """Balanced accuracy of the same interpreter at every layer; empty unless all layers were swept."""
    return [
        {
            "layer": view["layer"],
            **{
                f"{group}{end}": getattr(rate, name) if rate else None
                for group in GROUPS
                for rate in [rate_of(view, group, "balanced_accuracy")]
                for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))
            },
        }
        for view in interpreter.get("layers") or []
    ]
