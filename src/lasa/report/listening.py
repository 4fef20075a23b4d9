"""The chapter on harm in the answer: what the interpreter's head for answers would stop, and what it would spoil."""

from lasa.report.kinds import by_language
from lasa.report.run_folder import Run
from lasa.report.sections import Save, Section

LISTENING = {
    "flagged": "Harmful answers, prompt flagged (higher is better)",
    "stopped": "Stopped while written (higher is better)",
    "either": "Either (higher is better)",
    "false_stops": "Harmless answers stopped (lower is better)",
}


def listening(run: Run, _save: Save) -> list[Section]:
    """The head for answers on the base model's own answers, language by language."""
    found = run.interpreter.get("answers") or {}
    table = by_language(
        "Answers that are stopped, by language",
        "What the prompt's score catches before a word is written, what the head stops, and both together. Below each "
        "rate: its 95 % interval and the number of answers.",
        found,
        LISTENING,
        run.seen_languages,
    )
    if table is None:
        return []
    section = Section("listening", "Harm in the answer", tables=[table])
    section.text.append(
        "While an answer is written, a second head reads its tokens at the same layer. These are the base model's own "
        "answers without a guard: harmful is what complied with a harmful request, by the judge; harmless is every "
        "other answer that makes sense, refusals included."
    )
    tokens = (found.get("all") or {}).get("tokens")
    if tokens is not None:
        section.text.append(f"Of the harmful answers that it stops, half are stopped within {tokens:.0f} tokens.")
    return [section]
