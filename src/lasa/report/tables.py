"""The tables of the systems, and the rows of numbers that their figures draw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lasa.evaluation.metrics import GRADED
from lasa.report.run_folder import Document, Run
from lasa.report.table import Content, Rows, Table
from lasa.report.values import (
    ALL_GROUPS,
    BETTER,
    GROUP_NAMES,
    METRIC_NAMES,
    OUTCOMES,
    as_rate,
    decimal,
    outcome_counts,
    p_value,
    place_name,
    points,
    rate_of,
    rates,
    span,
    with_interval,
)
from lasa.statistics import Rate


@dataclass(frozen=True)
class HeatRow:
    """One language of the heat map: its rate for each system, with the sentence shown when a cell is pointed at."""

    language: str
    name: str
    group: str
    cells: Sequence[tuple[Rate | None, str]]


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
    groups = [place for place in ALL_GROUPS if rates(run.systems, [place], ["asr"])]
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


def cost_table(run: Run) -> Table:
    """Helpfulness, over-refusal and the language of refusals by system, for seen, unseen and all languages."""
    metrics = [m for m in METRIC_NAMES if m != "asr" and rates(run.systems, ALL_GROUPS, [m])]
    rows: list[Sequence[Content]] = []
    marked: set[int] = set()
    for name, entry in run.systems.items():
        for group in ALL_GROUPS:
            cells = [rate_of(entry, group, metric) for metric in metrics]
            if any(cells):
                marked |= {len(rows)} if group.startswith("unseen") else set()
                rows.append((name, place_name(group), *cells))
    return Table(
        "Helpfulness and over-refusal as a table",
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
        "Paired comparisons as a table",
        "Paired comparisons on the same prompts, in percentage points: below zero, the first system has the lower "
        "rate. Smallest detectable: the difference that this many pairs would show four times out of five.",
        ("Compared", "Metric", "Difference", "95 % interval", "p-value", "Pairs", "Smallest detectable", "Finding"),
        [
            (
                f"{entry['a']} − {entry['b']}",
                _compared(entry),
                points(entry.get("difference")),
                "" if entry.get("low") is None else span(points(entry["low"]), points(entry["high"])),
                p_value(entry.get("p_value")),
                f"{entry['n']:,}" if entry.get("n") is not None else "",
                points(entry["smallest_detectable"]).lstrip("+") if entry.get("smallest_detectable") else "",
                str(entry.get("verdict") or ""),
            )
            for entry in run.comparisons
        ],
    )


def agreement_table(run: Run) -> Table | None:
    """How far two judges agree on the same answers, and what labels by people say; None where neither is known."""
    judged = {name: entry for name, entry in run.systems.items() if entry.get("agreement") or entry.get("corrected")}
    if not judged:
        return None
    rows = []
    for name, entry in judged.items():
        two, corrected = entry.get("agreement") or {}, entry.get("corrected") or {}
        rows.append(
            (
                name,
                " and ".join(two.get("judges") or []),
                f"{two['disagreements']:,} of {two['answers']:,}" if two else "",
                decimal(two.get("cohen_kappa")),
                decimal(two.get("krippendorff_alpha")),
                as_rate(corrected.get("asr")),
                as_rate(corrected.get("sensitivity")),
                as_rate(corrected.get("specificity")),
            )
        )
    return Table(
        "Agreement of the judges",
        "Agreement of two judges on the same answers (1 is full agreement, 0 is chance), and, where people labelled "
        "some of them, attack success corrected for the first judge's errors.",
        (
            "System", "Judges", "Disagreements", "Cohen's kappa", "Krippendorff's alpha", "Attack success, corrected",
            "Judge's sensitivity", "Judge's specificity",
        ),
        rows,
    )  # fmt: skip


def second_judge_table(run: Run) -> Table | None:
    """The systems as the second judge sees them; None where there was one judge."""
    systems = {name: entry["second"] for name, entry in run.systems.items() if entry.get("second")}
    return _systems_table("Systems, by the second judge", systems) if systems else None


def split_table(name: str, split: Document) -> Table:
    """The systems on one of the harder splits."""
    return _systems_table(f"Split “{name}”: systems", split.get("systems") or {})


def _systems_table(title: str, systems: Document) -> Table:
    columns = [
        (metric, group)
        for metric in ("asr", "helpful", "over_refusal")
        for group in ("seen", "unseen")
        if rates(systems, [group], [metric])
    ]
    return Table(
        title,
        f"{title}. Good: low attack success, many helpful answers, low over-refusal. Below each rate: "
        "its 95 % interval and the number of scored prompts.",
        ("System", *(f"{METRIC_NAMES[m]}, {g}" for m, g in columns)),
        [(system, *(rate_of(entry, group, metric) for metric, group in columns)) for system, entry in systems.items()],
    )


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


def _marked(run: Run, places: Sequence[str]) -> frozenset[int]:
    seen = run.seen_languages
    unseen = {"unseen", *GRADED.values()} | (set(run.languages) - seen if seen is not None else set())
    return frozenset(index for index, place in enumerate(places) if place in unseen)


def _compared(entry: Document) -> str:
    metric, group = str(entry.get("metric", "asr")), str(entry.get("group", ""))
    return f"{METRIC_NAMES.get(metric, metric).lower()}, {GROUP_NAMES.get(group, group)}"
