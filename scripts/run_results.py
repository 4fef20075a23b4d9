"""The figures of docs/results of a whole run: `python scripts/run_results.py RUN FOLDER`.

FOLDER gets `metrics.json`, the report's figures with their tables, and a page. No prompt and no answer is written.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

GROUPS = {
    "seen": "Seen languages",
    "unseen": "Unseen languages",
    "unseen_covered": "Unseen languages in which the interpreter holds (`lasa coverage`)",
    "unseen_partly": "Unseen languages in which it holds partly",
    "unseen_not_covered": "Unseen languages in which it does not hold",
}
FIGURES = ("asr_by_language", "outcomes", "outcomes_by_language", "helpfulness", "comparisons", "settings_tried")
METRICS = {
    "asr": "attack success",
    "asr_any_language": "in any language",
    "refused_in_language": "refusals in the user's language",
    "helpful": "harmless: helped",
    "over_refusal": "harmless: refused",
}
COSTS = {
    "seconds": "seconds",
    "cpu_seconds": "seconds of processors",
    "peak_gib": "most memory, GiB",
    "gpu_peak_gib": "most GPU memory, GiB",
}


def main(run: Path, folder: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        for kind in ("svg", "csv"):
            if (run / "figures" / f"{name}.{kind}").is_file():
                shutil.copy(run / "figures" / f"{name}.{kind}", folder)
    metrics["bottleneck"].pop("provenance", None)  # it names folders of the machine
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (folder / "README.md").write_text(page(folder.name, metrics), "utf-8")


def page(name: str, metrics: dict[str, Any]) -> str:
    """The tables of a run."""
    systems = metrics["systems"]
    languages = list(next(iter(systems.values()))["languages"])
    lines = [f"# {name}", "", metrics["bottleneck"]["verdict"], "", *by_group(systems)]
    for label, outcome in (("Refused", "refused"), ("Complied", "complied"), ("Empty", "empty")):
        lines += [f"## {label}, of the harmful requests of each language, in %", "", row(["", *languages])]
        lines += [row(["---"] * (len(languages) + 1))]
        lines += [row([s, *(share(e["languages"][code], outcome) for code in languages)]) for s, e in systems.items()]
        lines.append("")
    second = {system: entry["second"] for system, entry in systems.items() if "second" in entry}
    if second:
        lines += ["## The second judge", "", row(["", "judges", "disagreements", "Cohen's kappa"]), row(["---"] * 4)]
        lines += [agreed(system, systems[system]["agreement"]) for system in second]
        lines += ["", *by_group(second, " by the second judge")]
    lines += ["## Compared, prompt by prompt", "", row(["", "", "languages", "difference in points", "p", "n"])]
    lines += [row(["---"] * 6), *(compared(one) for one in metrics["comparisons"]), ""]
    costs = metrics.get("costs") or {stage: {"seconds": value} for stage, value in metrics["seconds"].items()}
    kinds = [kind for kind in COSTS if any(kind in cost for cost in costs.values())]
    lines += ["## Cost", "", row(["stage", *(COSTS[kind] for kind in kinds)]), row(["---"] * (len(kinds) + 1))]
    lines += [row([stage, *(f"{c[k]:,.1f}" if k in c else "-" for k in kinds)]) for stage, c in costs.items()]
    return "\n".join(lines) + "\n"


def by_group(systems: dict[str, Any], judge: str = "") -> list[str]:
    lines = []
    for group, title in GROUPS.items():
        if group not in next(iter(systems.values())):
            continue
        lines += [f"## {title}{judge}", "", row(["", *METRICS.values(), "neither, empty among them"])]
        lines += [row(["---"] * (len(METRICS) + 2))]
        lines += [
            row([system, *(rate(e[group][m]) for m in METRICS), neither(e[group])]) for system, e in systems.items()
        ]
        lines.append("")
    return lines


def agreed(system: str, two: dict[str, Any]) -> str:
    kappa = "-" if two["cohen_kappa"] is None else f"{two['cohen_kappa']:.2f}"
    return row([system, " and ".join(two["judges"]), f"{two['disagreements']} of {two['answers']}", kappa])


def neither(block: dict[str, Any]) -> str:
    counts = block["outcomes"]
    other = sum(counts[name] for name in ("irrelevant", "wrong_language", "empty"))
    return f"{other} of {sum(counts.values())}, {counts['empty']} empty"


def share(block: dict[str, Any], outcome: str) -> str:
    total = sum(block["outcomes"].values())
    return f"{block['outcomes'][outcome] / total:.0%}".rstrip("%") if total else "-"


def compared(one: dict[str, Any]) -> str:
    span = f" ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})" if one["low"] is not None else ""
    difference = "-" if one["difference"] is None else f"{100 * one['difference']:+.1f}{span}"
    p = "-" if one["p_value"] is None else "< .001" if one["p_value"] < 0.001 else f"{one['p_value']:.3f}"
    pair = f"{one['a']} against {one['b']}"
    group = one["group"].replace("_", ", ", 1).replace("_", " ")
    return row([pair, METRICS.get(one["metric"], one["metric"]), group, difference, p, str(one["n"])])


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def rate(value: dict[str, Any]) -> str:
    if value["value"] is None:
        return "-"
    unscored = f", {value['unscored']} unscored" if value["unscored"] else ""
    return f"{value['value']:.1%} ({value['low']:.1%}-{value['high']:.1%}, n {value['n']}{unscored})"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
