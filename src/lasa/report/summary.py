"""The answer in plain words, written from the numbers: what changed, what it cost, what is open, what was not tested.

What is called a change, `changes` says.
"""

from collections import Counter
from dataclasses import dataclass, field

from lasa.evaluation.metrics import GRADED
from lasa.evaluation.outcomes import NEITHER
from lasa.evaluation.paired import SIGNIFICANCE
from lasa.report.caveats import caveats, left_out
from lasa.report.changes import apart, change, paired_difference, rate_in, why_unsure
from lasa.report.run_folder import BASE, Run
from lasa.report.values import (
    BETTER,
    GROUP_NAMES,
    METRIC_NAMES,
    as_rate,
    briefly,
    listed,
    outcome_counts,
    percent,
    place_name,
    rate_of,
    with_interval,
)
from lasa.statistics import Rate

GRADES = {"covered": "", "partly": "only partly", "not covered": "not"}
"""How the first page speaks of each grade."""


@dataclass(frozen=True)
class Tile:
    """One headline number: a metric before and after.

    Attributes:
        title: Metric and languages.
        better: Which direction is good, in words.
        before: The base model's rate, or None.
        after: The rate of the system that the report is about.
    """

    title: str
    better: str
    before: Rate | None
    after: Rate


@dataclass(frozen=True)
class Summary:
    """The first page of the report.

    Attributes:
        headline: The answer in one sentence.
        evidence: The numbers behind it.
        tiles: The headline numbers.
        findings: What else was found.
        caveats: How far the numbers carry.
        left_out: What was not measured, and so has no section.
    """

    headline: str
    evidence: str
    tiles: list[Tile] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def summarise(run: Run) -> Summary:
    """Write the summary of a run from its numbers."""
    headline, evidence = _headline(run)
    return Summary(
        headline=headline,
        evidence=evidence,
        tiles=_tiles(run),
        findings=[
            *_coverage(run),
            *_changes(run),
            *_second_judge(run),
            *_open(run),
            *_baselines(run),
            *_hard_splits(run),
            *_interpreter(run),
            *_drift(run),
            *_layer(run),
        ],
        caveats=caveats(run),
        left_out=left_out(run),
    )


def _headline(run: Run) -> tuple[str, str]:
    main, group = run.main_system, _headline_group(run)
    if main is None or group is None:
        return "No system has been evaluated yet.", "The sections below show the stages that have finished."
    after = rate_in(run, main, group, "asr")
    before = rate_in(run, BASE, group, "asr") if main != BASE else None
    if after is None:
        return "Attack success has not been measured.", "No answer to a harmful prompt was scored."
    where = GROUP_NAMES[group]
    if before is None:
        return (
            f"{main} complies with {percent(after.value)} of the harmful prompts in {where}.",
            f"Attack success {with_interval(after)}. There is nothing to compare it with.",
        )
    numbers = f"{BASE}: {with_interval(before)}. {main}: {with_interval(after)}."
    doubt = why_unsure(run, main, group, "asr")
    told = (
        numbers,
        paired_difference(run, main, group, "asr"),
        doubt and f"No clear change: {doubt}.",
        _unseen(run, group),
    )
    return change(run, main, group, "asr"), " ".join(part for part in told if part)


def _unseen(run: Run, group: str) -> str:
    if group != "unseen":
        return ""
    unseen = [place_name(code) for code in run.languages if code not in (run.seen_languages or run.languages)]
    return f"Unseen languages were not used in training{f': {listed(unseen)}' if unseen else ''}."


def _tiles(run: Run) -> list[Tile]:
    main, group = run.main_system, _headline_group(run)
    if main is None or group is None:
        return []
    tiles = []
    for metric in ("asr", "helpful", "over_refusal"):
        after = rate_in(run, main, group, metric)
        if after is not None:
            before = rate_in(run, BASE, group, metric) if main != BASE else None
            tiles.append(Tile(f"{METRIC_NAMES[metric]}, {GROUP_NAMES[group]}", BETTER[metric], before, after))
    return tiles


def _changes(run: Run) -> list[str]:
    main, group = run.main_system, _headline_group(run)
    if main is None or main == BASE or group is None:
        return []
    cases = [(part, "asr") for part in ("seen", *GRADED.values())] if group == "unseen" else []
    cases += [(group, metric) for metric in ("helpful", "over_refusal", "hard_benign_over_refusal")]
    return [
        change(run, main, where, metric).removesuffix(".") + (f" ({doubt})." if doubt else ".")
        for where, metric in cases
        if rate_in(run, main, where, metric) and rate_in(run, BASE, where, metric)
        for doubt in [why_unsure(run, main, where, metric)]
    ]


def _second_judge(run: Run) -> list[str]:
    """The headline number by the other judge, so that nobody takes one judge's for the truth."""
    main, group = run.main_system, _headline_group(run)
    if main is None or group is None or not run.second_judges:
        return []
    found = {
        name: rate
        for name in dict.fromkeys((BASE, main))
        if (rate := rate_of((run.systems.get(name) or {}).get("second") or {}, group, "asr"))
    }
    if not found:
        return []
    told = "; ".join(f"{name} {with_interval(rate)}" for name, rate in found.items())
    return [f"By the second judge ({listed(run.second_judges)}), attack success in {GROUP_NAMES[group]} is: {told}."]


def _open(run: Run) -> list[str]:
    """What is left: the languages with the highest attack success, and answers that are neither refusal nor help."""
    main = run.main_system
    if main is None:
        return []
    findings = []
    measured = [(code, rate) for code in run.languages if (rate := rate_in(run, main, code, "asr"))]
    worst = sorted((pair for pair in measured if pair[1].value), key=lambda pair: -(pair[1].value or 0))[:3]
    if worst:
        named = listed([f"{place_name(code)} {briefly(rate)}" for code, rate in worst])
        findings.append(f"Highest attack success that remains with {main}, by language (95 % interval): {named}.")
    elif measured:
        loosest = max(measured, key=lambda pair: pair[1].high or 0)[1]
        findings.append(
            f"{main} complied with no harmful prompt in any language. That is not zero risk: with {loosest.n:,} "
            f"prompts in a language, a rate of up to {percent(loosest.high)} is compatible with seeing none."
        )
    block = run.systems[main].get(_headline_group(run) or "all") or {}
    counts = outcome_counts(block)
    scored = sum(counts.values()) - counts.get("unscored", 0)
    neither = sum(counts.get(outcome, 0) for outcome in NEITHER)
    if scored and neither / scored >= 0.05:
        findings.append(
            f"{neither:,} of {scored:,} answers of {main} to harmful prompts neither refuse nor comply (beside the "
            "point, empty, or in another language). They do not count as attack success, and they are no sign of "
            "safety either."
        )
    return findings


def _baselines(run: Run) -> list[str]:
    main, group = run.main_system, _headline_group(run)
    others = [name for name in run.systems if name not in (BASE, main)]
    if group is None or not others:
        return []
    named = [f"{name} {briefly(rate)}" for name in others if (rate := rate_in(run, name, group, "asr"))]
    sentences = [f"Attack success of the other systems on {GROUP_NAMES[group]}: {listed(named)}."] if named else []
    unclear = [
        f"{entry['a']} and {entry['b']}"
        for entry in run.comparisons
        if entry.get("metric", "asr") == "asr"
        and entry.get("group") == group
        and BASE not in (entry.get("a"), entry.get("b"))
        and main in (entry.get("a"), entry.get("b"))
        and (entry.get("p_value") is None or entry["p_value"] >= SIGNIFICANCE)
    ]
    if unclear:
        sentences.append(f"The paired comparison shows no difference in attack success between {listed(unclear)}.")
    return sentences


def _hard_splits(run: Run) -> list[str]:
    named = []
    for name, split in run.splits.items():
        rate = rate_of((split.get("systems") or {}).get(run.main_system) or {}, "unseen", "asr")
        if rate is not None:
            named.append(f"{name} {briefly(rate)}")
    if not named:
        return []
    return [f"Attack success of {run.main_system} on the harder splits, unseen languages: {listed(named)}."]


def _interpreter(run: Run) -> list[str]:
    own = rate_of(run.interpreter, "unseen", "balanced_accuracy")
    if own is None:
        return []
    sentence = f"The interpreter tells harmful from harmless prompts in unseen languages with {with_interval(own)}"
    sentence += " balanced accuracy (50 % is chance)."
    rival = rate_of(run.interpreter.get("ngram_baseline") or {}, "unseen", "balanced_accuracy")
    if rival is None:
        return [sentence]
    sentence += f" A model that sees only character n-grams reaches {with_interval(rival)}."
    if not apart(own, rival):
        sentence += " The two intervals overlap: it is not shown that the interpreter reads more than surface words."
    elif (own.value or 0) < (rival.value or 0):
        sentence += " The interpreter is worse than that baseline."
    return [sentence]


def _drift(run: Run) -> list[str]:
    """A warning where training the system that the report is about moved the interpreter too far."""
    drift = (run.systems.get(run.main_system or "") or {}).get("drift") or {}
    changed = as_rate(drift.get("changed"))
    if changed is None or not drift.get("exceeded"):
        return []
    refitted = (run.recipe.get("alignment") or {}).get("refit")
    remedy = "were fitted again on the trained model before it was evaluated" if refitted else "should be fitted again"
    return [
        f"Training {run.main_system} changed {with_interval(changed)} of the interpreter's decisions, more than the "
        f"bound of {percent(drift['bound'])}: its thresholds {remedy}."
    ]


def _coverage(run: Run) -> list[str]:
    """For which languages the claim holds, for which it does not, and why."""
    graded = (run.interpreter.get("coverage") or {}).get("languages") or {}
    if not graded:
        return []
    names = {grade: [place_name(c) for c, one in graded.items() if one["grade"] == grade] for grade in GRADES}
    held = (
        f"The interpreter can be expected to hold in {listed(names['covered'])}"
        if names["covered"]
        else ("The interpreter cannot be relied on in any language")
    )
    rest = [f"{said} in {listed(names[grade])}" for grade, said in GRADES.items() if said and names[grade]]
    why = (
        ": there harmless sentences lie away from the states it learned from, or from their translations"
        if rest
        else ""
    )
    return [f"{'; '.join([held, *rest])}{why}."]


def _layer(run: Run) -> list[str]:
    verdict = run.bottleneck.get("verdict")
    return [str(verdict)] if verdict else []


def _headline_group(run: Run) -> str | None:
    """Unseen languages where they were measured, else all languages; None if no system has any attack success."""
    measured = Counter(
        group for name in run.systems for group in ("unseen", "all", "seen") if rate_in(run, name, group, "asr")
    )
    return next((group for group in ("unseen", "all", "seen") if measured[group]), None)
