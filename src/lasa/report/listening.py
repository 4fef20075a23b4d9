"""The chapter on harm in the answer: what the interpreter's head for answers would stop, and what it would spoil."""

from lasa.languages import sort_languages
from lasa.report.run_folder import Run
from lasa.report.sections import Save, Section
from lasa.report.tables import Table
from lasa.report.values import place_name, rate_of

LISTENING = {
    "flagged": "Harmful answers, prompt flagged (higher is better)",
    "stopped": "Stopped while written (higher is better)",
    "either": "Either (higher is better)",
    "false_stops": "Harmless answers stopped (lower is better)",
}


def listening(run: Run, _save: Save) -> list[Section]:
    """The head for answers on the base model's own answers, language by language."""
    found = run.interpreter.get("answers") or {}
    if not found:
        return []
    seen = run.seen_languages
    codes = sort_languages(list(found["languages"]))
    codes.sort(key=lambda code: code not in (seen or frozenset()))
    places = [*codes, *(group for group in ("seen", "unseen") if rate_of(found, group, "false_stops"))]
    section = Section("listening", "Harm in the answer")
    section.text.append(
        "While an answer is written, a second head reads its tokens at the same layer. These are the base model's own "
        "answers without a guard: harmful is what complied with a harmful request, by the judge; harmless is every "
        "other answer that makes sense, refusals included."
    )
    tokens = (found.get("all") or {}).get("tokens")
    if tokens is not None:
        section.text.append(f"Of the harmful answers that it stops, half are stopped within {tokens:.0f} tokens.")
    section.tables.append(
        Table(
            "Answers that are stopped, by language",
            "What the prompt's score catches before a word is written, what the head stops, and both together. Below "
            "each rate: its 95 % interval and the number of answers.",
            ("Language", *LISTENING.values()),
            [(place_name(place), *(rate_of(found, place, metric) for metric in LISTENING)) for place in places],
            frozenset(i for i, place in enumerate(places) if place not in {"seen", *(codes if seen is None else seen)}),
        )
    )
    return [section]
