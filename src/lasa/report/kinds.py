"""The chapter on kinds of harm: how well the interpreter names them, and which kinds of attacks succeed."""

from lasa.data.harm import HAZARDS
from lasa.languages import sort_languages
from lasa.report.run_folder import Document, Run
from lasa.report.sections import Save, Section
from lasa.report.table import Table
from lasa.report.values import BETTER, GROUPS, METRIC_NAMES, place_name, rate_of, rates

NAMING = {
    "right": "Right (higher is better)",
    "named": "Sure enough to be named",
    "right_when_named": "Right among those named (higher is better)",
    "ngrams_right": "n-grams: right",
}


def kinds(run: Run, _save: Save) -> list[Section]:
    """The interpreter's second head, and attack success by kind of harm."""
    named = run.interpreter.get("categories") or {}
    tables = [naming_table(named, run.seen_languages), kind_table(named), attack_table(run.systems)]
    if not any(tables):
        return []
    section = Section("kinds", "Kinds of harm", tables=[table for table in tables if table])
    codes = [f"{name} {', '.join(hazards)}" for name, hazards in HAZARDS.items()]
    section.text.append(f"The kinds, and the hazards of MLCommons' taxonomy that each covers: {'; '.join(codes)}.")
    statement = ((run.interpreter.get("development") or {}).get("statements") or {}).get("kind of harm")
    section.text += [str(statement)] if statement else []
    return [section]


def naming_table(named: Document, seen: frozenset[str] | None) -> Table | None:
    """How often the likeliest kind is right, by language; None where the interpreter names none."""
    return by_language(
        "The kind of harm by language",
        "Harmful prompts whose kind is known: how often the interpreter's likeliest kind is one of theirs, and how "
        "often it is sure enough to name it. Below each rate: its 95 % interval and the number of prompts.",
        named,
        NAMING,
        seen,
    )


def by_language(
    title: str, caption: str, found: Document, columns: dict[str, str], seen: frozenset[str] | None
) -> Table | None:
    """Rates of what was measured by language, seen ones first, then both groups; None where nothing was.

    Args:
        title: The table's.
        caption: Likewise.
        found: `languages`, `seen` and `unseen`, each with the rates.
        columns: Heading of each rate.
        seen: Languages used in training, if that is known.
    """
    codes = sort_languages(list(found.get("languages") or {}))
    codes.sort(key=lambda code: code not in (seen or frozenset()))
    if not codes:
        return None
    groups = [group for group in GROUPS if any(rate_of(found, group, metric) for metric in columns)]
    places = [*codes, *groups]
    return Table(
        title,
        caption,
        ("Language", *columns.values()),
        [(place_name(place), *(rate_of(found, place, metric) for metric in columns)) for place in places],
        frozenset(i for i, place in enumerate(places) if place not in {"seen", *(codes if seen is None else seen)}),
    )


def kind_table(named: Document) -> Table | None:
    """The same by the prompts' own kind; None where the interpreter names none."""
    by_kind = named.get("kinds") or {}
    if not by_kind:
        return None
    return Table(
        "The kind of harm by kind",
        "The same by what the prompts are labelled with first, in all languages.",
        ("Kind", *NAMING.values()),
        [(name, *(rate_of(by_kind, name, metric) for metric in NAMING)) for name in by_kind],
    )


def attack_table(systems: dict[str, Document]) -> Table | None:
    """Attack success by kind of harm and system; None where no prompt has a kind."""
    by_system = {name: entry.get("categories") or {} for name, entry in systems.items()}
    places = [name for name in HAZARDS if rates(by_system, [name], ["asr"])]
    if not places:
        return None
    return Table(
        "Attack success by kind of harm",
        f"{METRIC_NAMES['asr']} by kind of harm and system, in all languages ({BETTER['asr']}). Below each rate: its "
        "95 % interval and the number of scored prompts.",
        ("Kind", *systems),
        [(place, *(rate_of(entry, place, "asr") for entry in by_system.values())) for place in places],
    )
