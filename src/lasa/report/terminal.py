"""Tables that a person reads in a terminal."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from lasa.evaluation.outcomes import NEITHER
from lasa.languages import sort_languages

if TYPE_CHECKING:
    from lasa.interpreter.coverage import Coverage
    from lasa.interpreter.tables import Audit
    from lasa.statistics import Rate


TIGHT: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 0, 0, 1), "pad_edge": False, "show_edge": False}
"""How wide tables fit a terminal."""


def systems_tables(metrics: dict[str, Any]) -> list[Table]:
    """Attack success of every system by language and in groups, with what it hides and what it costs beside it."""
    systems = metrics["systems"]
    groups = Table(
        title="Percent, with 95 % intervals (ASR: attack success)",
        title_justify="left",
        caption="other: harmful requests answered senselessly, emptily or in a wrong language, which is no safety",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    groups.add_column("system", no_wrap=True)
    for name in ("ASR seen", "ASR unseen", "other", "helpful", "over- refusal"):
        groups.add_column(name, justify="right", width=12 if name.startswith("ASR") else 7)
    for name, system in systems.items():
        groups.add_row(
            name,
            interval(system["seen"]["asr"]),
            interval(system["unseen"]["asr"]),
            other_share(system["all"].get("outcomes")),
            percent(system["all"]["helpful"]),
            percent(system["all"]["over_refusal"]),
        )
    title = "Attack success in percent, lower is better (* safety-tuned)"
    return [_by_language(title, systems, "asr", metrics.get("seen_languages", ())), groups]


def evaluation_tables(metrics: dict[str, Any]) -> list[Table]:
    """Every system on every split: what was complied with, and beside it what was misunderstood; then by language."""
    whole = Table(
        title="Percent, with 95 % intervals by question",
        caption="ASR: attack success; any: in any language; other: irrelevant + wrong language + empty; n/a: unscored",
        title_justify="left",
        caption_justify="left",
        **TIGHT,
    )
    for column in ("system", "asked"):
        whole.add_column(column, overflow="fold")
    for column in ("ASR", "any", "other", "helpful", "over-ref.", "right", "n/a"):
        whole.add_column(column, justify="right", no_wrap=True)
    splits = {metrics["headline"]: metrics, **metrics["splits"]}
    for split, entry in splits.items():
        for system, groups in entry["systems"].items():
            found = groups["all"]
            scored = max(1, sum(found["outcomes"].values()))
            other = "+".join(f"{100 * found['outcomes'].get(name, 0) / scored:.0f}" for name in NEITHER)
            unscored = sum(found[name]["unscored"] for name in ("asr", "over_refusal"))
            whole.add_row(
                system,
                split,
                interval(found["asr"]),
                percent(found.get("asr_any_language")),
                other if found["asr"]["n"] else "-",
                percent(found["helpful"]),
                percent(found["over_refusal"]),
                percent(found.get("accuracy")),
                str(unscored),
            )
    systems = metrics["systems"]
    rate = "asr" if any(entry["all"]["asr"]["n"] for entry in systems.values()) else "accuracy"
    title = {"asr": "Attack success", "accuracy": "Right answers"}[rate]
    return [whole, _by_language(f"{title} on {metrics['headline']}, in percent", systems, rate)]


def judging_table(results: dict[str, Any]) -> Table:
    """What a judge makes of answers, a row per language, and how well it finds refusals where they are labelled."""
    table = Table(title=f"{results['judge']}: answers by outcome", title_justify="left", **TIGHT)
    table.caption = "found: refusals called so; left alone: compliances not called refusals; percent, 95 % intervals"
    table.caption_justify = "left"
    for name in ("", "answers", "refused", "complied", "other", "n/a", "found", "left alone"):
        table.add_column(name, justify="right", no_wrap=True)
    for code, found in results["languages"].items():
        outcomes = found["outcomes"]
        table.add_row(
            code,
            *map(str, (found["answers"], outcomes["refused"], outcomes["complied"])),
            str(sum(outcomes[name] for name in NEITHER)),
            str(found["unscored"]),
            interval(found.get("sensitivity")),
            interval(found.get("specificity")),
        )
    return table


def layers_table(found: dict[str, Any]) -> Table:
    """The layer search, a row per layer."""
    table = Table(
        title="S_sem - S_lang by layer",
        title_justify="left",
        **TIGHT,
        caption="argmax: share of resamples; xsim: translation found; LID: language recognised; U: OmniGuard's U-score",
        caption_justify="left",
    )
    for name in ("layer", "S_sem", "S_lang", "diff.", "95 % interval", "argmax", "xsim", "LID", "U"):
        table.add_column(name, justify="right", no_wrap=True)
    for view in found["layers"]:
        mark = " <" if view["layer"] == found["layer"] else ""
        low_high = view["difference_interval"]
        table.add_row(
            f"{view['layer']}{mark}",
            *(number(view[name]) for name in ("semantic", "language", "difference")),
            f"{low_high[0]:.3f} .. {low_high[1]:.3f}" if low_high else "undefined",
            f"{view['argmax_probability']:.0%}" if view["argmax_probability"] else "",
            *(number(view[name]) for name in ("xsim", "language_id_accuracy", "u_score")),
        )
    return table


def audit_table(audit: "Audit") -> Table:
    """What the interpreter's tables hold, a row per table, source and label; leaks below."""
    table = Table(title="Prompts for the interpreter", title_justify="left", caption_justify="left")
    for name in ("table", "source", "label", "prompts by language"):
        table.add_column(name)
    table.add_column("prompts", justify="right")
    for name, counts in audit.counts.items():
        for source, label in dict.fromkeys((count.source, count.label) for count in counts):
            cells = [count for count in counts if (count.source, count.label) == (source, label)]
            languages = ", ".join(f"{count.language} {count.prompts:,}" for count in cells)
            table.add_row(name, source, label, languages, f"{sum(count.prompts for count in cells):,}")
    same = ", ".join(f"{rows:,} {match}" for match, rows in audit.duplicates.items()) or "none"
    licences = {count.source: count.licence for counts in audit.counts.values() for count in counts}
    table.caption = (
        f"Licences: {'; '.join(f'{source}: {licence}' for source, licence in licences.items())}. "
        f"Texts in both training or development and a test: {same}. Rows whose question a test asks, in any wording "
        f"or language: {len(audit.leaks):,}."
    )
    return table


def probe_summary(results: dict[str, Any]) -> Table:
    """The interpreter, its controls and what it generalises to: balanced accuracy on seen and unseen languages."""
    table = Table(title="Balanced accuracy (95 % interval)", title_justify="left")
    table.add_column("test")
    table.add_column("probe")
    for name in ("seen languages", "unseen languages", "flagged benign", "flagged hard benign"):
        table.add_column(name, justify="right")
    for test, found in results["benchmarks"].items():
        controls = {
            name: found[name]
            for name in ("early_layer", "late_layer", "ngram_baseline", "encoder_baseline")
            if name in found
        }
        for name, block in {"interpreter": found, **controls}.items():
            if block:
                _add_probe(table, test, f"{name} {block['layer']}" if "layer" in block else name, block)
    generalisation = results["generalisation"]
    for layer in generalisation.get("layers", ()):
        _add_probe(table, "layer sweep", f"layer {layer['layer']}", layer)
    for change, block in generalisation.get("perturbations", {}).items():
        _add_probe(table, "perturbed", change, block)
    for kind in ("languages", "sources"):
        for value, block in generalisation[f"left_out_{kind}"].items():
            _add_probe(table, f"left out {kind[:-1]}", value, {"unseen": block})
    return table


def _by_language(title: str, systems: dict[str, Any], rate: str, marked: Collection[str] = ()) -> Table:
    """A rate of every system in every language, in whole percent."""
    table = Table(title=title, title_justify="left", **TIGHT)
    table.add_column("system", no_wrap=True)
    codes = sort_languages({code for system in systems.values() for code in system["languages"]})
    for code in codes:
        table.add_column(code + ("*" if code in marked else ""), justify="right", no_wrap=True)
    for name, system in systems.items():
        table.add_row(name, *(whole_percent(system["languages"].get(code, {}).get(rate)) for code in codes))
    return table


def coverage_table(coverage: "Coverage") -> Table:
    """Every language with its grade, and what it is based on."""
    table = Table(title="Where the interpreter can be expected to hold", title_justify="left", **TIGHT)
    table.caption, table.caption_justify = coverage.rule, "left"
    for name in ("language", "grade", "agreement", "displacement", "shift", "translations found", "AUROC measured"):
        table.add_column(name, justify="left" if name in ("language", "grade") else "right")
    for code, one in coverage.languages.items():
        signals = (one.agreement, one.displacement, one.shift, one.retrieval, one.auroc)
        table.add_row(code, one.grade, *(_signal(signal) for signal in signals))
    return table


def _signal(signal: "Rate | None") -> str:
    if signal is None or signal.value is None:
        return "-"
    return f"{signal.value:.2f} ({signal.low:.2f} to {signal.high:.2f})"


def _add_probe(table: Table, test: str, name: str, block: dict[str, Any]) -> None:
    seen, unseen = block.get("seen", {}), block.get("unseen", {})
    whole = block.get("all", unseen)
    table.add_row(
        test,
        name,
        interval(seen.get("balanced_accuracy")),
        interval(unseen.get("balanced_accuracy")),
        interval(whole.get("fpr")),
        interval(whole.get("hard_benign_fpr")),
    )


def number(value: float | None) -> str:
    """A number in three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def other_share(outcomes: dict[str, int] | None) -> str:
    """Share of answers to harmful requests that are neither a refusal nor compliance, in percent."""
    scored = sum((outcomes or {}).values())
    return f"{100 * sum(outcomes.get(name, 0) for name in NEITHER) / scored:.1f}" if outcomes and scored else "-"


def whole_percent(rate: dict[str, Any] | None) -> str:
    """A rate in whole percent, or a dash."""
    return "-" if not rate or rate["value"] is None else f"{100 * rate['value']:.0f}"


def percent(rate: dict[str, Any] | None) -> str:
    """A rate in percent, or a dash."""
    return "-" if not rate or rate["value"] is None else f"{100 * rate['value']:.1f}"


def interval(rate: dict[str, Any] | None) -> str:
    """A rate in percent with its interval, or a dash."""
    if not rate or rate["value"] is None:
        return "-"
    return f"{100 * rate['value']:.1f} ({100 * rate['low']:.1f}-{100 * rate['high']:.1f})"
