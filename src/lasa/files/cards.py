"""Model cards: the README.md of an aligned model and of an interpreter, as the Hugging Face Hub reads them.

A card states only what it is given: a fact that is missing is called missing, not made up.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from lasa.languages import NAMES, sort_languages

_METRICS = {
    "asr": "Attack success (lower is better)",
    "over_refusal": "Over-refusal (lower is better)",
    "hard_benign_over_refusal": "Over-refusal of hard benign prompts (lower is better)",
    "helpful": "Helpful answers (higher is better)",
    "balanced_accuracy": "Balanced accuracy (higher is better)",
    "tpr": "Harmful prompts found (higher is better)",
    "fpr": "Benign prompts flagged (lower is better)",
    "auroc": "AUROC (higher is better)",
}

_GROUPS = {"seen": "seen languages", "unseen": "unseen languages", "all": "all languages"}


def model_card(facts: Mapping[str, Any]) -> str:
    """The card of an aligned model.

    Args:
        facts: `base_model` (Hub id or path), `layer`, `languages` (of training), `metrics` (an entry of `systems` in
            `metrics.json`), `data` (what it was trained on), `license` (of the base model, as a Hub identifier),
            `method` (what it was trained with), `coverage` (the interpreter's grade of each language), `condition` (the
            text that marks a harmful prompt; None if the training used none), `guarded` (whether it was measured behind
            the guard), `limits` (further sentences); each may be absent.

    Returns:
        Markdown with Hub metadata at its top.
    """
    conditioned = facts.get("condition") is not None
    lesson = (
        " The training teaches it to continue a condition: a sentence at the start of its turn that says that the "
        "request is harmful."
        if conditioned
        else " The training used no condition: what it refuses it learned from the training data alone."
    )
    behind = "" if facts.get("guarded") is None else "behind the guard" if facts["guarded"] else "without the guard"
    measured = f" The figures below were measured {behind}." if behind else ""
    return _card(
        facts,
        title="Aligned model",
        tags=["lasa", "safety", "multilingual", "alignment"],
        opening=f"{_base(facts)}, aligned{_with(facts)} to refuse harmful requests in the user's language.{lesson}",
        reading=_reading(facts, "The condition is set by an interpreter that reads"),
        use=(
            "Chat behind the guard that ships with it: without an interpreter nothing sets the condition, and the "
            f"model then protects less.{measured}"
            if conditioned
            else "A baseline to compare with."
        )
        + " Measure it in your languages and on your prompts before you rely on it.",
        limits=[
            "No guard stops every attack. Attacks made with knowledge of this one may get through.",
            "A language without numbers below has not been measured.",
            "Refusing harmless requests is the price to watch: see over-refusal.",
            *_coverage(facts),
            *(_cell(limit) for limit in facts.get("limits") or []),
        ],
    )


def interpreter_card(config: Mapping[str, Any]) -> str:
    """The card of a Safety Semantic Interpreter.

    Args:
        config: Its `config.json`, of which are used `base_model`, `read_point`, `languages`, `metrics`, `data`,
            `coverage`, `license`, `threshold`, `parameters` and `parameter_share`; each may be absent.

    Returns:
        Markdown with Hub metadata at its top.
    """
    layer = (config.get("read_point") or {}).get("layer")
    return _card(
        config,
        title="Safety Semantic Interpreter",
        tags=["lasa", "safety", "multilingual", "probe"],
        opening=(
            f"A probe on {_base(config)}. It reads one hidden state of the prompt and gives the calibrated probability "
            f"that the request is harmful.{_kinds(config)}"
        ),
        reading=" ".join(part for part in (_reading({"layer": layer}, "It reads"), _size(config)) if part),
        use=(
            "Deciding, before the first token is generated, whether a prompt is to be refused; with this base model, "
            "this layer and this chat template only. Loading it onto another model is an error."
        ),
        limits=[
            "It judges the prompt, not the answer.",
            "Intent that takes several steps of reasoning to see (puzzles, codes, rare spellings) may pass unseen.",
            "A language without numbers below has not been measured; the threshold need not fit it.",
            *_coverage(config),
            *_statements(config),
        ],
    )


def _card(
    facts: Mapping[str, Any],
    *,
    title: str,
    tags: list[str],
    opening: str,
    reading: str,
    use: str,
    limits: Sequence[str],
) -> str:
    languages = sort_languages(list(facts.get("languages") or []))
    trained = ", ".join(f"{NAMES.get(code, code)} ({code})" for code in languages) or "not recorded"
    data = facts.get("data") or {}
    fingerprints = [f"- {_cell(name)}: `{_cell(value)}`" for name, value in data.items() if value] or ["Not recorded."]
    sections = {
        f"# {title}": [opening, reading],
        "## Intended use": [use],
        "## Limits": ["\n".join(f"- {limit}" for limit in limits)],
        "## Languages": [f"Trained on: {trained}."],
        "## Measured": [_measured(facts.get("metrics") or {})],
        "## Data": ["What it was made from (files by their fingerprints):", "\n".join(fingerprints)],
        "## Licence": [_licence(facts)],
    }
    body = "\n\n".join("\n\n".join([heading, *filter(None, texts)]) for heading, texts in sections.items())
    return f"---\n{_metadata(facts, languages, tags)}\n---\n\n{body}\n"


def _metadata(facts: Mapping[str, Any], languages: list[str], tags: list[str]) -> str:
    base = str(facts.get("base_model") or "")
    on_the_hub = base.count("/") == 1 and not base.startswith(("/", ".", "~")) and not Path(base).exists()
    data = ModelCardData(
        base_model=base if on_the_hub else None,
        language=languages or None,
        license=facts.get("license"),
        library_name="lasa",
        tags=tags,
    )
    return data.to_yaml().strip()


def _measured(metrics: Mapping[str, Any]) -> str:
    languages: Mapping[str, Any] = metrics.get("languages") or {}
    blocks = {name: metrics[group] for group, name in _GROUPS.items() if metrics.get(group)}
    blocks |= {NAMES.get(code, code): languages[code] for code in sort_languages(list(languages))}
    shown = [metric for metric in _METRICS if any(block.get(metric) is not None for block in blocks.values())]
    if not shown:
        return "Nothing yet: this card was written before any evaluation."
    lines = [["", *(_METRICS[metric] for metric in shown)], ["---"] * (len(shown) + 1)]
    lines += [[name, *(_rate(metric, block.get(metric)) for metric in shown)] for name, block in blocks.items()]
    note = "In brackets: 95 % interval and number of scored prompts."
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{note}"


def _rate(metric: str, value: Any) -> str:
    if isinstance(value, int | float):
        return f"{value:.3f}" if metric == "auroc" else f"{100 * value:.1f} %"
    if not isinstance(value, Mapping) or value.get("value") is None:
        return "–"
    facts = [] if value.get("low") is None else [f"{100 * value['low']:.1f}–{100 * value['high']:.1f} %"]
    facts += [f"n = {value['n']:,}"] if value.get("n") else []
    return f"{100 * value['value']:.1f} %" + (f" ({', '.join(facts)})" if facts else "")


def _base(facts: Mapping[str, Any]) -> str:
    return f"`{_cell(facts['base_model'])}`" if facts.get("base_model") else "a base model that is not recorded"


def _with(facts: Mapping[str, Any]) -> str:
    return f" with {_cell(facts['method'])}" if facts.get("method") else ""


def _reading(facts: Mapping[str, Any], opening: str) -> str:
    reading = "" if facts.get("layer") is None else f"{opening} layer {facts['layer']} (0 is the embeddings)."
    condition = f' The condition reads: "{_cell(facts["condition"])}"' if facts.get("condition") else ""
    return (reading + condition).strip()


def _coverage(facts: Mapping[str, Any]) -> list[str]:
    """Where the interpreter can be expected to hold, as graded without safety labels."""
    grades: Mapping[str, str] = facts.get("coverage") or {}
    by_grade = {
        grade: ", ".join(NAMES.get(code, code) for code in sort_languages([c for c in grades if grades[c] == grade]))
        for grade in ("covered", "partly", "not covered")
    }
    told = "; ".join(f"{grade}: {languages}" for grade, languages in by_grade.items() if languages)
    return [f"Where the interpreter can be expected to hold, from harmless text alone: {told}."] if told else []


def _kinds(config: Mapping[str, Any]) -> str:
    names = (config.get("categories") or {}).get("names") or ()
    if not names:
        return ""
    return f" A second head tells {len(names)} kinds of harm apart: {', '.join(_cell(name) for name in names)}."


def _statements(config: Mapping[str, Any]) -> list[str]:
    """What the calibration can promise of the thresholds."""
    development = (config.get("metrics") or {}).get("development") or {}
    return [
        f"{_cell(name).capitalize()}: {_cell(text)}" for name, text in (development.get("statements") or {}).items()
    ]


def _size(config: Mapping[str, Any]) -> str:
    if not config.get("parameters"):
        return ""
    share = config.get("parameter_share")
    size = f"It has {config['parameters']:,} parameters" + (f", {100 * share:.2g} % of the model's." if share else ".")
    threshold = config.get("threshold")
    return size + ("" if threshold is None else f" A prompt is flagged from a probability of {threshold:.3f}.")


def _licence(facts: Mapping[str, Any]) -> str:
    known = f"The base model's licence is `{facts['license']}`. " if facts.get("license") else ""
    return (
        f"{known}These weights were made from the base model and from the data above; the terms of both still apply. "
        "Check them before you pass the weights on."
    )


def _cell(value: object) -> str:
    """Text that cannot break out of a line of Markdown, a table or a code span."""
    return " ".join(str(value).split()).replace("`", "'").replace("|", "/")
