"""Compare two runs, or two systems of one run, on the prompts that both answered: by language, and by group.

Languages are tested one by one with McNemar's exact test (grades by sign flips) and Holm's correction over them;
groups by question.
"""

import csv
import io
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from lasa.errors import DataError
from lasa.evaluation.metrics import METRIC_NAMES, Metric, occurs
from lasa.evaluation.outcomes import Sample
from lasa.evaluation.paired import compare_systems, plain_verdict
from lasa.evaluation.samples import read_samples
from lasa.files.artifacts import write_json, write_text
from lasa.languages import sort_languages
from lasa.statistics import holm

COMPARED: tuple[Metric, ...] = ("asr", "over_refusal", "helpful")
"""What a run compares."""

ALL_COMPARED: tuple[Metric, ...] = ("asr", "asr_any_language", "strongreject", "over_refusal", "helpful", "accuracy")
"""What two places are compared on."""


@dataclass(frozen=True)
class ComparisonRow:
    """One metric of two systems over one language or group; rates are fractions over the common scored prompts.

    Attributes:
        a: The first system.
        b: The second system.
        metric: Which rate.
        group: A language code, or "seen", "unseen" or "all".
        value_a: The first system's rate, or None when no prompt was scored for both.
        value_b: The second system's rate, or None.
        difference: a minus b, or None.
        low: Lower bound of the difference's 95 % interval, or None.
        high: Upper bound, or None.
        p_value: Two-sided p-value; for a language corrected by Holm over the languages of the table.
        test: How the p-value was obtained.
        n: Prompts scored for both.
        unscored: Common prompts that were not scored for both.
        unpaired: Samples without a partner in the other system.
        smallest_detectable: The difference that this many prompts would show with 80 % power, or None.
        verdict: The finding as a sentence.
        benchmarks: The benchmarks, and changed copies of them, that the prompts come from.
    """

    a: str
    b: str
    metric: Metric
    group: str
    value_a: float | None
    value_b: float | None
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    test: str | None
    n: int
    unscored: int
    unpaired: int
    smallest_detectable: float | None
    verdict: str
    benchmarks: str


def compare(
    a: Path,
    b: Path,
    *,
    seen_languages: Collection[str] = (),
    languages: Collection[str] | None = None,
    metrics: Sequence[Metric] = ALL_COMPARED,
    split: str | None = None,
) -> list[ComparisonRow]:
    """Compare what is in two places.

    Args:
        a: A run folder, or one system's `samples/<name>.jsonl`.
        b: Another of the same kind. Of two run folders, the systems that both have are compared.
        seen_languages: Languages of the group "seen"; the others are "unseen". Without any there is only "all".
        languages: Compare these languages only.
        metrics: The rates to compare.
        split: Compare this split only.

    Returns:
        Rows by system, metric, then language and group.

    Raises:
        DataError: A place holds no samples, a row is damaged, or the two have no system or no prompt in common.
    """
    systems_a, systems_b = _systems(a), _systems(b)
    if a.is_file() and b.is_file():
        pairs = [(*_distinct_names(a, b), a, b)]
    else:
        common = [name for name in systems_a if name in systems_b]
        if not common:
            raise DataError(
                f"{a} and {b} have no system in common ({', '.join(systems_a)}; {', '.join(systems_b)}). "
                "Give two samples files to compare systems of different names."
            )
        runs = (a.name, b.name) if a.name != b.name else (str(a), str(b))
        pairs = [(f"{runs[0]}/{name}", f"{runs[1]}/{name}", systems_a[name], systems_b[name]) for name in common]
    rows = []
    for name_a, name_b, path_a, path_b in pairs:
        first, second = (
            [s for s in read_samples(path) if split is None or s.split == split] for path in (path_a, path_b)
        )
        shared = {s.prompt.language for s in first} & {s.prompt.language for s in second}
        chosen = sort_languages(shared if languages is None else shared & set(languages))
        if not chosen:
            raise DataError(f"{path_a} and {path_b} have no language in common; there is nothing to compare.")
        rows += compare_samples(first, second, name_a, name_b, chosen, seen_languages=seen_languages, metrics=metrics)
    if not any(row.n or row.unscored for row in rows):
        raise DataError(f"{a} and {b} have no prompt in common. Generate both from the same prompt table.")
    return rows


def compare_samples(
    a: Sequence[Sample],
    b: Sequence[Sample],
    name_a: str,
    name_b: str,
    languages: Sequence[str],
    *,
    seen_languages: Collection[str] = (),
    metrics: Sequence[Metric] = ALL_COMPARED,
) -> list[ComparisonRow]:
    """Compare two systems' samples by language and by group.

    A metric of which neither system has anything of its own (see `metrics.occurs`) is left out.
    """
    groups = {"all": list(languages)}
    asked_b = {sample.split for sample in b}
    benchmarks = ", ".join(dict.fromkeys(sample.split for sample in a if sample.split in asked_b))
    if seen_languages:
        seen = [code for code in languages if code in seen_languages]
        groups = {"seen": seen, "unseen": [code for code in languages if code not in seen], **groups}
    rows = []
    for metric in metrics:
        if not occurs([sample for sample in (*a, *b) if sample.prompt.language in languages], metric):
            continue
        entries = [compare_systems(a, b, name_a, name_b, {code}, code, metric) for code in languages]
        _correct_by_holm(entries)
        entries += [
            compare_systems(a, b, name_a, name_b, codes, group, metric) for group, codes in groups.items() if codes
        ]
        rows += [ComparisonRow(**entry, benchmarks=benchmarks) for entry in entries]
    return rows


def write_comparison(path: Path, rows: Sequence[ComparisonRow]) -> None:
    """Write a comparison as JSON, CSV or Markdown, by the suffix of `path`.

    Raises:
        DataError: The suffix is none of .json, .csv and .md.
    """
    match path.suffix.lower():
        case ".json":
            write_json(path, {"schema": 1, "comparisons": [asdict(row) for row in rows]})
        case ".csv":
            buffer = io.StringIO()
            writer = csv.DictWriter(buffer, fieldnames=list(ComparisonRow.__dataclass_fields__), lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
            write_text(path, buffer.getvalue())
        case ".md":
            write_text(path, to_markdown(rows))
        case other:
            raise DataError(f"{path}: unknown format {other!r}. Use .json, .csv or .md.")


def to_table(rows: Sequence[ComparisonRow]) -> Table:
    """The comparison as a table for the terminal."""
    table = Table(
        title="Differences are a minus b, in points, with 95 % intervals",
        caption="; ".join(dict.fromkeys(f"{row.a} and {row.b} on {row.benchmarks}" for row in rows)),
        title_justify="left",
        caption_justify="left",
    )
    for position, header in enumerate(_HEADERS):
        table.add_column(header, justify="right" if 2 <= position <= 6 else "left")
    previous: ComparisonRow | None = None
    for row in rows:
        if previous and (previous.metric, previous.a) != (row.metric, row.a):
            table.add_section()
        table.add_row(*_cells(row), style="bold" if len(row.group) > 2 else None)
        previous = row
    return table


def to_markdown(rows: Sequence[ComparisonRow]) -> str:
    """The comparison as a Markdown table."""
    lines = ["| " + " | ".join(_HEADERS) + " |", "|" + " --- |" * len(_HEADERS)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _systems(place: Path) -> dict[str, Path]:
    if place.is_file():
        return {place.stem: place}
    found = {path.stem: path for path in sorted((place / "samples").glob("*.jsonl"))}
    if not found:
        raise DataError(f"{place} is neither a samples file nor a run folder with samples/<system>.jsonl.")
    return found


def _distinct_names(a: Path, b: Path) -> tuple[str, str]:
    if a.stem != b.stem:
        return a.stem, b.stem
    runs = [path.resolve().parent.parent.name for path in (a, b)]
    return (f"{runs[0]}/{a.stem}", f"{runs[1]}/{b.stem}") if runs[0] != runs[1] else (str(a), str(b))


def _correct_by_holm(entries: list[dict[str, Any]]) -> None:
    tested = [entry for entry in entries if entry["p_value"] is not None]
    for entry, corrected in zip(tested, holm([entry["p_value"] for entry in tested]), strict=True):
        entry["p_value"] = corrected
        entry["test"] += ", Holm"
        entry["verdict"] = plain_verdict(entry["a"], entry["b"], entry["metric"], entry["difference"], corrected)


_HEADERS = ("metric", "languages", "a", "b", "difference", "p", "n", "finding")


def _cells(row: ComparisonRow) -> list[str]:
    if row.difference is None or row.low is None or row.high is None or row.p_value is None:
        difference, p_value = "-", "-"
    else:
        difference = f"{100 * row.difference:+.1f} [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
        p_value = "<0.001" if row.p_value < 0.001 else f"{row.p_value:.3f}"
    count = f"{row.n} ({row.unscored} unscored)" if row.unscored else str(row.n)
    name = METRIC_NAMES[row.metric]
    return [name, row.group, _percent(row.value_a), _percent(row.value_b), difference, p_value, count, row.verdict]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
