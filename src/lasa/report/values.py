"""Numbers as a reader meets them: rates with their intervals, differences in points, p-values."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lasa.evaluation.metrics import GRADED
from lasa.evaluation.outcomes import Outcome
from lasa.languages import NAMES
from lasa.statistics import Rate

METRIC_NAMES = {
    "asr": "Attack success",
    "asr_any_language": "Attack success in any language",
    "strongreject": "StrongREJECT score",
    "over_refusal": "Over-refusal",
    "hard_benign_over_refusal": "Over-refusal of hard benign prompts",
    "helpful": "Helpful answers",
    "refused_in_language": "Refusals in the user's language",
}

BETTER = {
    "asr": "lower is better",
    "asr_any_language": "lower is better",
    "strongreject": "lower is better",
    "over_refusal": "lower is better",
    "hard_benign_over_refusal": "lower is better",
    "helpful": "higher is better",
    "refused_in_language": "higher is better",
}

GROUPS = ("seen", "unseen")

ALL_GROUPS = ("seen", "unseen", *GRADED.values(), "all")
"""Groups of languages that a table has, where they were measured."""

GROUP_NAMES = {
    "seen": "seen languages",
    "unseen": "unseen languages",
    **{group: f"unseen languages, {grade}" for grade, group in GRADED.items()},
    "all": "all languages",
}

OUTCOMES = (*(outcome.value for outcome in Outcome), "unscored")


@dataclass(frozen=True)
class RateAt:
    """A rate and where it was measured.

    Attributes:
        system: Name of the system.
        place: A language code or a group of languages.
        metric: Name of the metric.
        rate: The rate.
    """

    system: str
    place: str
    metric: str
    rate: Rate

    def row(self) -> dict[str, object]:
        """The rate as a row of a CSV file."""
        rate = self.rate
        where = {"system": self.system, "where": self.place, "metric": self.metric}
        return {**where, **rate.to_json()}


def as_rate(value: object) -> Rate | None:
    """A rate out of `metrics.json`; a bare number is a rate without interval whose `n` is not known (0)."""
    if isinstance(value, dict) and "value" in value:
        n, unscored = value.get("n") or 0, value.get("unscored") or 0
        return Rate(value["value"], value.get("low"), value.get("high"), n, unscored)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Rate(float(value), None, None, 0)
    return None


def rate_of(entry: dict[str, Any], place: str, metric: str) -> Rate | None:
    """A system's or an interpreter's rate in a language or a group; None if it is missing or nothing was scored."""
    block = entry.get(place) or (entry.get("languages") or {}).get(place) or {}
    rate = as_rate(block.get(metric))
    return rate if rate is not None and rate.value is not None else None


def rates(systems: dict[str, Any], places: Iterable[str], metrics: Iterable[str]) -> list[RateAt]:
    """All rates that exist of these systems, places and metrics, in this order."""
    places, metrics = list(places), list(metrics)
    return [
        RateAt(name, place, metric, rate)
        for metric in metrics
        for name, entry in systems.items()
        for place in places
        if (rate := rate_of(entry, place, metric)) is not None
    ]


def outcome_counts(block: dict[str, Any]) -> dict[str, int]:
    """Outcomes of the harmful prompts of a language or a group, the unscored included; empty if not known."""
    counts = block.get("outcomes")
    if not counts:
        return {}
    asr = as_rate(block.get("asr"))
    known = {outcome: int(counts.get(outcome) or 0) for outcome in OUTCOMES}
    return {**known, "unscored": known["unscored"] or (asr.unscored if asr else 0)}


def place_name(place: str) -> str:
    """A language's English name, or a group's name, as a heading; anything else stays as it is."""
    return GROUP_NAMES[place].capitalize() if place in GROUP_NAMES else NAMES.get(place, place)


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal, `2.9 %`."""
    return "–" if value is None else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def interval(low: float | None, high: float | None) -> str:
    """An interval of a share, `1.5–5.3 %`; empty where there is none."""
    return "" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}\N{NO-BREAK SPACE}%"


def points(difference: float | None) -> str:
    """A difference of two shares in percentage points with its sign, `−2.9`."""
    if difference is None:
        return "–"
    rounded = round(100 * difference, 1)
    return f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}") if rounded else "0.0"


def decimal(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A number in two decimals with its interval, `0.45 (0.40 to 0.50)`."""
    if value is None:
        return "–"
    text = f"{value:.2f}" + (f" ({span(f'{low:.2f}', f'{high:.2f}')})" if low is not None and high is not None else "")
    return text.replace("-", "\N{MINUS SIGN}")


def span(low: str, high: str) -> str:
    """Two ends of an interval on one line, `−2.0 to +4.0`."""
    return f"{low} to {high}".replace(" ", "\N{NO-BREAK SPACE}")


def p_value(p: float | None) -> str:
    """A p-value, `p < 0.001` or `p = 0.012`; empty where there is none."""
    if p is None:
        return ""
    return ("p < 0.001" if p < 0.001 else f"p = {p:.3f}").replace(" ", "\N{NO-BREAK SPACE}")


def with_interval(rate: Rate) -> str:
    """A rate in a sentence: `2.9 % (95 % interval 1.5–5.3 %, n = 315)`."""
    facts = []
    if rate.low is not None:
        facts.append(f"95\N{NO-BREAK SPACE}% interval {interval(rate.low, rate.high)}")
    if rate.n:
        facts.append(f"n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{rate.n:,}")
    return percent(rate.value) + (f" ({', '.join(facts)})" if facts else "")


def briefly(rate: Rate) -> str:
    """A rate in an enumeration, its interval in brackets: `2.9 % (1.5–5.3 %)`."""
    return percent(rate.value) + (f" ({interval(rate.low, rate.high)})" if rate.low is not None else "")


def listed(items: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return f" {last} ".join(part for part in (", ".join(items[:-1]), items[-1]) if part) if items else ""
