"""The tables of a report, and the rows of numbers that its figures draw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lasa.evaluation.statistics import Rate
from lasa.languages import sort_languages
from lasa.report.run_folder import Document, Run
from lasa.report.values import (
    BETTER,
    GROUP_NAMES,
    GROUPS,
    METRIC_NAMES,
    OUTCOMES,
    outcome_counts,
    p_value,
    percent,
    place_name,
    points,
    rate_of,
    rates,
    with_interval,
)

Content = str | Rate | None
Rows = list[dict[str, Any]]

PROBE_METRICS = {
    "balanced_accuracy": "Balanced accuracy (higher is better)",
    "tpr": "Harmful prompts found (higher is better)",
    "fpr": "Benign prompts flagged (lower is better)",
    "auroc": "AUROC (higher is better)",
}


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        title: What to call it where it is folded away.
        caption: What it shows and what is good.
        columns: Headings; the first column names the row.
        rows: Cells, as many in each row as there are columns.
        marked: Indices of the rows that stand out.
        marks: What these rows are.
    """

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Content]]
    marked: frozenset[int] = field(default_factory=frozenset)
    marks: str = "unseen languages"


@dataclass(frozen=True)
class HeatRow:
    """One language of the heat map: its rate for each system, with the sentence shown when a cell is pointed at."""

    language: str
    name: str
    group: str
    cells: Sequence[tuple[Rate | None, str]]


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
                *(_number(row[n], row[f"{n}_low"], row[f"{n}_high"]) for n in ("semantic", "language", "difference")),
                *(percent(row[name]) for name in ("argmax_probability", "xsim", "language_id_accuracy")),
                _number(row["u_score"]),
            )
            for row in rows
        ],
        frozenset(index for index, row in enumerate(rows) if row["layer"] == chosen),
        marks="the bottleneck",
    )  # fmt: skip


def heat_rows(run: Run) -> list[HeatRow]:
    """Attack success by language and system, the seen languages first."""
    rows = []
    for code in languages_in_order(run):
        group = "" if run.seen_languages is None else "Seen in training" if code in run.seen_languages else "Unseen"
        cells = []
        for name, entry in run.systems.items():
            rate = rate_of(entry, code, "asr")
            told = f"{place_name(code)}, {name}: " + (with_interval(rate) if rate else "not measured")
            cells.append((rate, told + (f", {rate.unscored:,} unscored" if rate and rate.unscored else "")))
        rows.append(HeatRow(code, place_name(code), group, cells))
    return rows


def languages_in_order(run: Run) -> list[str]:
    """The languages that were measured: seen ones first, if it is known which those are."""
    seen = run.seen_languages or frozenset()
    return sorted(run.languages, key=lambda code: code not in seen)


def asr_table(run: Run) -> Table:
    """Attack success of every system in every language and group, with intervals."""
    groups = [place for place in ("seen", "unseen", "all") if rates(run.systems, [place], ["asr"])]
    places = [*languages_in_order(run), *groups]
    return _rate_table(
        "Attack success as a table, with intervals",
        f"Attack success by language and system ({BETTER['asr']}). Below each rate: its 95 % interval and "
        "the number of scored harmful prompts.",
        run.systems, places, "asr", _marked(run, places),
    )  # fmt: skip


def outcome_rows(systems: Mapping[str, Document], places: Sequence[str]) -> Rows:
    """Outcomes of harmful prompts by place and system."""
    return [
        {"where": place, "system": name, **counts}
        for place in places
        for name, entry in systems.items()
        if (counts := outcome_counts(entry.get(place) or (entry.get("languages") or {}).get(place) or {}))
        and sum(counts.values())
    ]


def outcome_table(rows: Rows, title: str) -> Table:
    """Counts of the outcomes."""
    return Table(
        title,
        "What came of the harmful prompts (number of answers). Good: many refused, few complied.",
        ("Languages", "System", *(outcome.replace("_", " ").capitalize() for outcome in OUTCOMES)),
        [(place_name(row["where"]), row["system"], *(f"{row[o]:,}" for o in OUTCOMES)) for row in rows],
    )


def probes_of(interpreter: Document) -> dict[str, Document]:
    """The interpreter and what it has to beat, by the name that the report gives each."""
    early, late = (interpreter.get(name) or {} for name in ("early_layer", "late_layer"))
    probes = {
        f"interpreter{_at_layer(interpreter)}": interpreter,
        f"early-layer probe{_at_layer(early)}": early,
        f"late-layer probe{_at_layer(late)}": late,
        "n-gram baseline": interpreter.get("ngram_baseline") or {},
    }
    return {name: block for name, block in probes.items() if any(block.get(g) for g in ("seen", "unseen", "languages"))}


def probe_table(interpreter: Document, seen: frozenset[str] | None) -> Table:
    """The interpreter by language, and its baselines beside it."""
    codes = sort_languages(list(interpreter.get("languages") or {}))
    codes.sort(key=lambda code: code not in (seen or frozenset()))
    places = [*codes, *(group for group in ("seen", "unseen") if interpreter.get(group))]
    metrics = [m for m in PROBE_METRICS if rates({"": interpreter}, places, [m])]
    rivals = {
        name: block for name, block in list(probes_of(interpreter).items())[1:]
        if rates({name: block}, places, ["balanced_accuracy"])
    }  # fmt: skip
    return Table(
        "The interpreter by language",
        "The interpreter by language. Balanced accuracy of its baselines stands beside it: the interpreter has to "
        "beat them. Below each rate: its 95 % interval and the number of scored prompts.",
        ("Language", *(PROBE_METRICS[m] for m in metrics), *(f"{name}: balanced accuracy" for name in rivals)),
        [
            (
                place_name(place),
                *(rate_of(interpreter, place, metric) for metric in metrics),
                *(rate_of(block, place, "balanced_accuracy") for block in rivals.values()),
            )
            for place in places
        ],
        frozenset(i for i, place in enumerate(places) if place not in {"seen", *(codes if seen is None else seen)}),
    )


def histogram_rows(histogram: Document) -> Rows:
    """Bins of the score histogram; empty unless there is one more edge than there are counts."""
    edges, harmful, benign = (histogram.get(name) or [] for name in ("edges", "harmful", "benign"))
    if not harmful or not len(edges) - 1 == len(harmful) == len(benign):
        return []
    return [
        {"low": low, "high": high, "harmful": h, "benign": b}
        for low, high, h, b in zip(edges, edges[1:], harmful, benign, strict=False)
    ]


def cost_table(run: Run) -> Table:
    """Helpfulness, over-refusal and the language of refusals by system, for seen, unseen and all languages."""
    metrics = [m for m in METRIC_NAMES if m != "asr" and rates(run.systems, ("seen", "unseen", "all"), [m])]
    rows: list[Sequence[Content]] = []
    marked: set[int] = set()
    for name, entry in run.systems.items():
        for group in ("seen", "unseen", "all"):
            cells = [rate_of(entry, group, metric) for metric in metrics]
            if any(cells):
                marked |= {len(rows)} if group == "unseen" else set()
                rows.append((name, place_name(group), *cells))
    return Table(
        "Helpfulness and over-refusal",
        "Helpfulness and over-refusal. Below each rate: its 95 % interval and the number of scored prompts.",
        ("System", "Languages", *(f"{METRIC_NAMES[m]} ({BETTER[m]})" for m in metrics)),
        rows,
        frozenset(marked),
    )


def helpful_table(run: Run) -> Table:
    """Helpful answers by language and system."""
    places = [code for code in languages_in_order(run) if rates(run.systems, [code], ["helpful"])]
    return _rate_table(
        "Helpful answers by language",
        f"Helpful answers to benign prompts by language ({BETTER['helpful']}). Below each rate: its 95 % interval.",
        run.systems, places, "helpful", _marked(run, places),
    )  # fmt: skip


def comparison_rows(run: Run) -> Rows:
    """Paired differences, first system minus second, of those comparisons that had pairs."""
    return [
        {
            "comparison": f"{entry['a']} − {entry['b']}, {_compared(entry)}",
            **{name: entry.get(name) for name in ("a", "b", "group")},
            "metric": entry.get("metric", "asr"),
            **{name: entry.get(name) for name in ("difference", "low", "high", "p_value", "n")},
        }
        for entry in run.comparisons
        if entry.get("difference") is not None
    ]


def comparison_table(run: Run) -> Table:
    """All paired comparisons with their verdicts."""
    return Table(
        "Paired comparisons",
        "Paired comparisons on the same prompts, in percentage points: below zero, the first system has the lower "
        "rate. Smallest detectable: the difference that this many pairs would show four times out of five.",
        ("Compared", "Metric", "Difference", "95 % interval", "p-value", "Pairs", "Smallest detectable", "Finding"),
        [
            (
                f"{entry['a']} − {entry['b']}",
                _compared(entry),
                points(entry.get("difference")),
                "" if entry.get("low") is None else _span(points(entry["low"]), points(entry["high"])),
                p_value(entry.get("p_value")),
                f"{entry['n']:,}" if entry.get("n") is not None else "",
                points(entry["smallest_detectable"]).lstrip("+") if entry.get("smallest_detectable") else "",
                str(entry.get("verdict") or ""),
            )
            for entry in run.comparisons
        ],
    )


def split_table(name: str, split: Document) -> Table:
    """The systems on one of the harder splits."""
    systems = split.get("systems") or {}
    columns = [
        (metric, group)
        for metric in ("asr", "helpful", "over_refusal")
        for group in ("seen", "unseen")
        if rates(systems, [group], [metric])
    ]
    return Table(
        f"Split “{name}”: systems",
        f"Split “{name}”: systems. Good: low attack success, many helpful answers, low over-refusal. Below each rate: "
        "its 95 % interval and the number of scored prompts.",
        ("System", *(f"{METRIC_NAMES[m]}, {g}" for m, g in columns)),
        [(system, *(rate_of(entry, group, metric) for metric, group in columns)) for system, entry in systems.items()],
    )


def split_probe_table(name: str, interpreter: Document) -> Table | None:
    """The interpreter and its baselines on one of the harder splits; None if they were not scored there."""
    probes = probes_of(interpreter)
    if not rates(probes, ("seen", "unseen"), ["balanced_accuracy"]):
        return None
    return Table(
        f"Split “{name}”: interpreter",
        f"Split “{name}”: balanced accuracy of the interpreter and its baselines (higher is better; 50 % is chance).",
        ("Probe", "Seen languages", "Unseen languages"),
        [(probe, *(rate_of(block, g, "balanced_accuracy") for g in GROUPS)) for probe, block in probes.items()],
    )


def fact_table(caption: str, facts: Document) -> Table:
    """A nested document as one row per fact."""
    return Table(caption, caption, ("Fact", "Value"), [(name, value) for name, value in _flat(facts)])


def _rate_table(
    title: str, caption: str, systems: Document, places: Sequence[str], metric: str, marked: frozenset[int]
) -> Table:
    return Table(
        title,
        caption,
        ("Language", *systems),
        [(place_name(place), *(rate_of(entry, place, metric) for entry in systems.values())) for place in places],
        marked,
    )


def _at_layer(block: Document) -> str:
    return f" (layer {block['layer']})" if block.get("layer") is not None else ""


def _marked(run: Run, places: Sequence[str]) -> frozenset[int]:
    seen = run.seen_languages
    unseen = {"unseen"} | (set(run.languages) - seen if seen is not None else set())
    return frozenset(index for index, place in enumerate(places) if place in unseen)


def _compared(entry: Document) -> str:
    metric, group = str(entry.get("metric", "asr")), str(entry.get("group", ""))
    return f"{METRIC_NAMES.get(metric, metric).lower()}, {GROUP_NAMES.get(group, group)}"


def _number(value: float | None, low: float | None = None, high: float | None = None) -> str:
    if value is None:
        return "–"
    text = f"{value:.2f}" + (f" ({_span(f'{low:.2f}', f'{high:.2f}')})" if low is not None and high is not None else "")
    return text.replace("-", "\N{MINUS SIGN}")


def _span(low: str, high: str) -> str:
    return f"{low} to {high}".replace(" ", "\N{NO-BREAK SPACE}")


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [fact for key, child in value.items() for fact in _flat(child, f"{name} · {key}" if name else str(key))]
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return [(name, " ".join(str(item) for item in value))]
    return [(name, "" if value is None else str(value))]
