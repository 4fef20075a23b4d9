"""The tables of what was trained: the settings that were tried, and what training did to interpreter and language."""

from lasa.report.run_folder import Run
from lasa.report.table import Rows, Table
from lasa.report.tables import languages_in_order
from lasa.report.values import METRIC_NAMES, as_rate, decimal, percent, place_name


def sweep_rows(run: Run) -> Rows:
    """Every setting that was tried for a system, with what it reached on the development benchmark."""
    return [
        {
            "system": name,
            "candidate": ", ".join(f"{key} {value}" for key, value in (candidate.get("settings") or {}).items()),
            "asr": as_rate(candidate.get("asr")),
            "helpful": as_rate(candidate.get("helpful")),
            "chosen": bool(candidate.get("chosen")),
        }
        for name, entry in run.systems.items()
        for candidate in entry.get("sweep") or []
    ]


def sweep_table(rows: Rows) -> Table:
    """The candidates of every system, the chosen ones marked."""
    return Table(
        "Settings tried",
        "Settings tried for each system, measured on development prompts in the seen languages. Good: low attack "
        "success among many helpful answers. Below each rate: its 95 % interval and the number of scored prompts.",
        ("System", "Settings", METRIC_NAMES["asr"], METRIC_NAMES["helpful"], "Used"),
        [(r["system"], r["candidate"], r["asr"], r["helpful"], "used" if r["chosen"] else "") for r in rows],
        frozenset(index for index, row in enumerate(rows) if row["chosen"]),
        marks="the settings that were used",
    )


def drift_table(run: Run) -> Table | None:
    """How far each system's training moved the interpreter's decisions; None where nothing was trained."""
    drifts = {name: entry["drift"] for name, entry in run.systems.items() if entry.get("drift")}
    if not drifts:
        return None
    return Table(
        "Drift of the interpreter",
        "Decisions of the interpreter that training changed, on development prompts that both models read (lower is "
        "better). Below each rate: its 95 % interval and the number of prompts.",
        ("System", "Changed", "Newly flagged", "Newly passed", "Mean shift of the probability", "Bound", "Finding"),
        [
            (
                name,
                as_rate(drift["changed"]),
                f"{drift['newly_flagged']:,}",
                f"{drift['newly_passed']:,}",
                f"{drift['mean_shift']:.3f}",
                percent(drift["bound"]),
                "above the bound" if drift.get("exceeded") else "within the bound",
            )
            for name, drift in drifts.items()
        ],
        frozenset(index for index, drift in enumerate(drifts.values()) if drift.get("exceeded")),
        marks="systems above the bound",
    )


def perplexity_table(run: Run) -> Table | None:
    """What training did to the perplexity of harmless text; None where it was not measured."""
    measured = {name: entry["perplexity"] for name, entry in run.systems.items() if entry.get("perplexity")}
    if not measured:
        return None
    codes = [code for code in languages_in_order(run) if any(code in one["languages"] for one in measured.values())]
    return Table(
        "Perplexity of harmless text after training",
        "Perplexity of harmless conversations after training, divided by that before (1.00: unchanged; far above: the "
        "model has lost language, far below: it has been fitted to such text).",
        ("System", "All languages", *(place_name(code) for code in codes)),
        [
            (name, decimal(one["all"]["ratio"]), *(decimal(one["languages"].get(c, {}).get("ratio")) for c in codes))
            for name, one in measured.items()
        ],
    )
