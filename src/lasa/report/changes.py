"""What changed from the base to the system that a report is about, in words.

A change is called one only where the paired comparison says so, or, without one, where the two intervals do not touch.
"""

from typing import Any

from lasa.evaluation.paired import SIGNIFICANCE
from lasa.report.run_folder import BASE, Run
from lasa.report.values import BETTER, GROUP_NAMES, METRIC_NAMES, p_value, percent, points, rate_of
from lasa.statistics import Rate


def change(run: Run, main: str, group: str, metric: str) -> str:
    """What became of a rate of the base in the system that the report is about, as a sentence."""
    before, after = rate_in(run, BASE, group, metric), rate_in(run, main, group, metric)
    assert before is not None and after is not None
    name, where = METRIC_NAMES[metric], GROUP_NAMES[group]
    values = f"{percent(before.value)} to {percent(after.value)}"
    if why_unsure(run, main, group, metric):
        return f"{name} in {where}: no clear change, {percent(before.value)} before and {percent(after.value)} after."
    verb = "fell" if (after.value or 0) < (before.value or 0) else "rose"
    worse = (verb == "rose") == (BETTER[metric] == "lower is better")
    return f"{name} in {where} {verb} from {values}{', which is worse' if worse else ''}."


def why_unsure(run: Run, main: str, group: str, metric: str) -> str:
    """Why a difference is not called a change; empty where it is one."""
    before, after = rate_in(run, BASE, group, metric), rate_in(run, main, group, metric)
    entry = _comparison(run, main, group, metric)
    if before is None or after is None or before.value == after.value:
        return "the rates are the same"
    if entry is None:
        return "" if apart(before, after) else "the intervals overlap, and no paired comparison was computed"
    if entry.get("p_value") is None:
        return "no prompt was scored for both"
    if entry["p_value"] < SIGNIFICANCE:
        return ""
    smallest = entry.get("smallest_detectable")
    missed = f"; a change below {100 * smallest:.1f} points may well go unnoticed" if smallest else ""
    return p_value(entry["p_value"]) + missed


def paired_difference(run: Run, main: str, group: str, metric: str) -> str:
    """The difference on the same prompts, as a sentence; empty where it was not computed."""
    entry = _comparison(run, main, group, metric)
    if entry is None or entry.get("difference") is None:
        return ""
    span = f"{points(entry['low'])} to {points(entry['high'])}"
    facts = [f"95\N{NO-BREAK SPACE}% interval {span}", p_value(entry.get("p_value"))]
    if entry.get("n"):
        facts.append(f"{entry['n']:,} pairs")
    told = ", ".join(fact for fact in facts if fact)
    return f"Difference on the same prompts: {points(entry['difference'])} points ({told})."


def _comparison(run: Run, main: str, group: str, metric: str) -> dict[str, Any] | None:
    for entry in run.comparisons:
        pair = {entry.get("a"), entry.get("b")}
        if pair == {BASE, main} and entry.get("group") == group and entry.get("metric", "asr") == metric:
            return entry
    return None


def apart(first: Rate, second: Rate) -> bool:
    """Whether two intervals do not touch."""
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return False
    return first.high < second.low or second.high < first.low


def rate_in(run: Run, system: str, place: str, metric: str) -> Rate | None:
    """A system's rate in a language or group, or None."""
    return rate_of(run.systems.get(system) or {}, place, metric)
