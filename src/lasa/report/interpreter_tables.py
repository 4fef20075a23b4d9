"""The tables of stage 2: the interpreter and its baselines, calibration, what it generalises to, and its data."""

from collections import Counter

from lasa.languages import sort_languages
from lasa.report.run_folder import Document
from lasa.report.table import Content, Rows, Table
from lasa.report.values import GROUPS, RateAt, decimal, percent, place_name, rate_of, rates

PROBE_METRICS = {
    "balanced_accuracy": "Balanced accuracy (higher is better)",
    "tpr": "Harmful prompts found (higher is better)",
    "fpr": "Benign prompts flagged (lower is better)",
    "auroc": "AUROC (higher is better)",
}


def probes_of(interpreter: Document) -> dict[str, Document]:
    """The interpreter and what it has to beat, by the name that the report gives each."""
    early, late = (interpreter.get(name) or {} for name in ("early_layer", "late_layer"))
    probes = {
        f"interpreter{_at_layer(interpreter)}": interpreter,
        f"early-layer probe{_at_layer(early)}": early,
        f"late-layer probe{_at_layer(late)}": late,
        "n-gram baseline": interpreter.get("ngram_baseline") or {},
        "sentence encoder": interpreter.get("encoder_baseline") or {},
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


def training_table(interpreter: Document) -> Table | None:
    """What the trainings and the calibration say of themselves; None where it is not recorded."""
    trained = interpreter.get("development") or {}
    band, own = interpreter.get("controversial"), interpreter.get("language_thresholds") or {}
    facts = {
        "Independent trainings": str(len(trained["auroc"])) if trained.get("auroc") else "",
        "AUROC on development data": _spread(trained.get("auroc"), trained.get("auroc_sd")),
        "Loss on development data": _spread(trained.get("losses"), trained.get("loss_sd")),
        "Best epoch": ", ".join(str(epoch) for epoch in trained.get("best_epochs") or []),
        "Temperature": f"{interpreter['temperature']:.2f}" if interpreter.get("temperature") else "",
        "Threshold": f"{interpreter['threshold']:.3f}" if interpreter.get("threshold") is not None else "",
        "Thresholds of single languages": ", ".join(f"{code} {value:.3f}" for code, value in own.items()),
        "Controversial from": f"{band:.3f}" if band is not None else "",
        **{f"What holds for the {name}": text for name, text in (trained.get("statements") or {}).items()},
    }
    rows = [(name, value) for name, value in facts.items() if value]
    if not trained or not rows:
        return None
    return Table("Training and thresholds", "Training and thresholds of the interpreter.", ("Fact", "Value"), rows)


def reliability_table(rows: Rows) -> Table:
    """The reliability diagram in numbers."""
    return Table(
        "Calibration as a table",
        "Calibration: prompts grouped by the probability that the interpreter gave. Good: both shares are equal.",
        ("Mean probability given", "Share that is harmful", "Prompts"),
        [(percent(row["confidence"]), percent(row["accuracy"]), f"{row['n']:,}") for row in rows],
    )


def perturbation_cells(interpreter: Document) -> list[RateAt]:
    """Balanced accuracy on changed prompts (`all`) and on the same prompts as they were (`unchanged`)."""
    return rates(_perturbations(interpreter), ("unchanged", "all"), ["balanced_accuracy"])


def perturbation_table(interpreter: Document) -> Table | None:
    """The interpreter on changed prompts; None where none were tried."""
    changes = _perturbations(interpreter)
    if not changes:
        return None
    columns = (
        ("unchanged", "balanced_accuracy"), ("all", "balanced_accuracy"), ("unchanged", "tpr"), ("all", "tpr"),
        ("unchanged", "fpr"), ("all", "fpr"),
    )  # fmt: skip
    words = {"unchanged": "as written", "all": "changed"}
    return Table(
        "Changed prompts as a table",
        "The interpreter on prompts that were changed without changing what they ask, beside the same prompts as "
        "written. Below each rate: its 95 % interval and the number of prompts.",
        ("Change", *(f"{PROBE_METRICS[metric]}, {words[place]}" for place, metric in columns)),
        [
            (f"{name}: {block['skipped']}" if block.get("skipped") else name,
             *(rate_of(block, place, metric) for place, metric in columns))
            for name, block in changes.items()
        ],
    )  # fmt: skip


def left_out_table(interpreter: Document) -> Table | None:
    """Interpreters trained without one language, or without one source, measured on it; None if there are none."""
    rows: list[tuple[Content, ...]] = []
    for kind in ("languages", "sources"):
        for name, block in (interpreter.get(f"left_out_{kind}") or {}).items():
            what = place_name(name) if kind == "languages" else f"source {name}"
            measured = block.get("skipped") or f"{block.get('rows')} prompts"
            whole = rate_of(interpreter, name, "balanced_accuracy") if kind == "languages" else None
            cells = [rate_of({"all": block}, "all", metric) for metric in ("balanced_accuracy", "tpr", "fpr")]
            rows.append((what, measured, whole, *cells))
    if not rows:
        return None
    return Table(
        "Left out of the training",
        "An interpreter trained without one language, or without one source of data, measured on what was left out "
        "(one training each). Good: little is lost against the interpreter that saw it. Below each rate: its 95 % "
        "interval and the number of prompts.",
        (
            "Left out", "Measured on", "Balanced accuracy with it in training", "Balanced accuracy without",
            "Harmful prompts found without", "Benign prompts flagged without",
        ),
        rows,
    )  # fmt: skip


def coverage_table(interpreter: Document) -> Table | None:
    """Where the interpreter can be expected to hold, language by language; None where that was not looked at."""
    coverage = interpreter.get("coverage") or {}
    rows: list[tuple[Content, ...]] = [
        (place_name(code), str(one["grade"]), *(_signal(one.get(name)) for name in SIGNALS))
        for code, one in (coverage.get("languages") or {}).items()
    ]
    if not rows:
        return None
    return Table(
        "Where the interpreter can be expected to hold",
        "Graded on harmless sentences that are translations of each other, without a safety label. Agreement: rank "
        "correlation of the scores with those of the translations in the seen languages. Displacement: "
        "distance of the mean state to theirs, in mean distances within a language. Shift: mean difference of the "
        f"scores, in standard deviations. In brackets: 95 % interval. {str(coverage.get('rule')).capitalize()}.",
        ("Language", "Grade", *SIGNALS.values()),
        rows,
        frozenset(number for number, row in enumerate(rows) if row[1] == "not covered"),
        marks="languages that are not covered",
    )


SIGNALS = {
    "agreement": "Agreement",
    "displacement": "Displacement",
    "shift": "Shift",
    "retrieval": "Translations found in English",
    "auroc": "AUROC, measured",
}


def _signal(signal: Document | None) -> str:
    if not signal or signal.get("value") is None:
        return ""
    return f"{signal['value']:.2f} ({signal['low']:.2f} to {signal['high']:.2f})"


def audit_facts(audit: Document) -> list[str]:
    """What the audit of the data found, as sentences."""
    same, leaks = audit.get("duplicates") or {}, audit.get("leaks") or []
    told = [f"{count:,} {kind}" for kind, count in same.items()]
    sentences = [
        f"Texts that are both in training or development data and in a test: {', '.join(told) or 'none'}.",
        "Rows whose question a test asks, in any wording or language: "
        f"{sum(leak['rows'] for leak in leaks):,}." + (" The test figures are too good by that." if leaks else ""),
    ]
    return sentences


def audit_table(audit: Document) -> Table | None:
    """The prompts of each table by source and label; None where they were not counted."""
    prompts: Counter[tuple[str, str, str]] = Counter()
    languages: dict[tuple[str, str, str], list[str]] = {}
    for count in audit.get("counts") or []:
        key = (count["table"], count["source"], count["label"])
        prompts[key] += count["prompts"]
        languages.setdefault(key, []).append(f"{count['language']} {count['prompts']:,}")
    if not prompts:
        return None
    return Table(
        "Prompts of the interpreter",
        "Prompts that the interpreter was trained, calibrated and tested on.",
        ("Table", "Source", "Label", "Prompts", "By language"),
        [(*key, f"{number:,}", ", ".join(languages[key])) for key, number in prompts.items()],
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


def _at_layer(block: Document) -> str:
    return f" (layer {block['layer']})" if block.get("layer") is not None else ""


def _perturbations(interpreter: Document) -> dict[str, Document]:
    return {name.replace("_", " "): block for name, block in (interpreter.get("perturbations") or {}).items()}


def _spread(values: list[float] | None, deviation: float | None) -> str:
    if not values:
        return ""
    mean = decimal(sum(values) / len(values))
    return mean + (f", standard deviation {deviation:.3f}" if deviation is not None and len(values) > 1 else "")
