"""What made a run, and what each of its stages cost."""

from typing import Any

from lasa.report.run_folder import Run
from lasa.report.table import Table

COSTS = {
    "seconds": "Seconds",
    "cpu_seconds": "Seconds of processors",
    "peak_gib": "Most memory, GiB",
    "gpu_peak_gib": "Most GPU memory, GiB",
}


def origin_tables(run: Run) -> list[Table]:
    """A row for each fact of the provenance, and one for each stage; no table where nothing is known."""
    made, took = "What made this run", "What each stage took"
    found = [Table(made, made, ("Fact", "Value"), _flat(run.provenance))] if run.provenance else []
    seconds = run.metrics.get("seconds") or {}
    known = run.metrics.get("costs") or {stage: {"seconds": value} for stage, value in seconds.items()}
    names = [name for name in COSTS if any(name in cost for cost in known.values())]
    rows = [[stage, *(f"{cost[n]:,.1f}" if n in cost else "-" for n in names)] for stage, cost in known.items()]
    return [*found, Table(took, took, ("Stage", *(COSTS[name] for name in names)), rows)] if rows else found


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [fact for key, child in value.items() for fact in _flat(child, f"{name} · {key}" if name else str(key))]
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return [(name, " ".join(str(item) for item in value))]
    return [(name, "" if value is None else str(value))]
