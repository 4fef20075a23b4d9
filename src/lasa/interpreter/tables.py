"""The labelled prompts of stage 2: loaded, split by query, and audited before anything is trained on them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lasa.data.corpora.audit import Count, Leak, check_no_leaks, count_prompts, find_leaks, near_duplicates
from lasa.data.perturbations import perturbed
from lasa.data.prompts import Prompt
from lasa.data.sources import load_each, load_prompts
from lasa.errors import DataError, RecipeError
from lasa.interpreter.settings import InterpreterSettings
from lasa.interpreter.training import split_by_query
from lasa.progress import say

TRAIN, DEVELOPMENT, CALIBRATION = "training data", "development data", "calibration data"
"""Names of the tables that are not tests."""


@dataclass(frozen=True)
class Audit:
    """What the tables hold, and what training and evaluation have in common.

    Attributes:
        counts: By table, its prompts by language, source and label.
        duplicates: Training and development prompts whose text is in a test table: `exact` and `normalised`.
        leaks: Training and development rows whose question a test table asks, however worded.
    """

    counts: dict[str, list[Count]]
    duplicates: dict[str, int]
    leaks: list[Leak]

    def to_json(self) -> dict[str, Any]:
        """Counts as rows; leaks counted by kind, source and test source."""
        leaks = Counter((leak.kind, leak.source, leak.evaluation_source) for leak in self.leaks)
        return {
            "counts": [{"table": name, **asdict(count)} for name, counts in self.counts.items() for count in counts],
            "duplicates": self.duplicates,
            "leaks": [
                {"kind": kind, "source": source, "evaluation_source": evaluated, "rows": rows}
                for (kind, source, evaluated), rows in sorted(leaks.items())
            ],
        }


@dataclass(frozen=True)
class InterpreterTables:
    """The labelled prompts of stage 2.

    Attributes:
        train: In the seen languages; perturbed copies included.
        development: In the seen languages, other queries.
        calibration: More benign prompts for thresholds, in any language.
        tests: Held-out tables by name, in any language; the first is the headline.
        audit: What they hold.
    """

    train: list[Prompt]
    development: list[Prompt]
    calibration: list[Prompt]
    tests: dict[str, list[Prompt]]
    audit: Audit

    def by_name(self) -> dict[str, Sequence[Prompt]]:
        """All tables, in the order in which their states are stored."""
        return _named(self.train, self.development, self.calibration, self.tests)


def load_tables(
    section: InterpreterSettings, seen_languages: Sequence[str], tests: Mapping[str, str], seed: int
) -> InterpreterTables:
    """Load, split and audit the tables of stage 2.

    Args:
        section: Sources, development share, perturbed copies.
        seen_languages: Languages to train on; empty for all that the training sources have.
        tests: Sources of the test tables by name.
        seed: Of the split and the perturbations.

    Raises:
        DataError: A source is unreadable or has no labelled prompt in the seen languages.
    """
    train = _labelled(section.train, seen_languages)
    if section.development:
        development = _labelled(section.development, seen_languages)
    else:
        kept, held = split_by_query(train, section.development_share, seed)
        train, development = _where(train, kept), _where(train, held)
    held_out = {name: [p for p in load_prompts(source) if p.harmful is not None] for name, source in tests.items()}
    asked = [prompt for prompts in held_out.values() for prompt in prompts]
    calibration = [p for p in load_each(section.calibration) if p.harmful is False]
    if section.leaks == "drop":
        train, development, calibration = (_unasked(table, asked) for table in (train, development, calibration))
    learnt = [*train, *development, *calibration]
    audit = Audit(
        {name: count_prompts(prompts) for name, prompts in _named(train, development, calibration, held_out).items()},
        dict(Counter(duplicate.match for duplicate in near_duplicates(learnt, asked))),
        find_leaks(learnt, asked),
    )
    copies = [copy for change in section.perturbed_copies for copy in perturbed(train, change, seed)]
    return InterpreterTables([*train, *copies], development, calibration, held_out, audit)


def check_tables(tables: InterpreterTables, section: InterpreterSettings) -> None:
    """Refuse tables that would flatter the interpreter.

    Raises:
        DataError: A test asks a training question and the settings do not allow it, or thresholds would be fitted on
            texts that were trained on.
        RecipeError: A sweep over the layers has no test.
    """
    if tables.audit.leaks and section.leaks != "allow":
        asked = [prompt for prompts in tables.tests.values() for prompt in prompts]
        check_no_leaks([*tables.train, *tables.development, *tables.calibration], asked)
    for name, prompts in (("development", tables.development), ("calibration", tables.calibration)):
        same = near_duplicates(prompts, tables.train)
        if same:
            raise DataError(
                f"{len(same)} {name} prompts are in the training data as well (first: query "
                f"{prompts[same[0].left].query_id!r}); early stopping or thresholds would be fitted on known prompts. "
                "Remove them from either."
            )
    if section.all_layers and not next(iter(tables.tests.values()), []):
        raise RecipeError("A sweep over all layers needs labelled test prompts to measure each layer on.")


def _labelled(sources: Sequence[str], languages: Sequence[str]) -> list[Prompt]:
    wanted = [p for p in load_each(sources) if not languages or p.language in languages]
    found = [p for p in wanted if p.harmful is not None]
    if not found:
        where = f" in {', '.join(languages)}" if languages else ""
        raise DataError(f"{', '.join(sources)}: no prompt labelled harmful or benign{where}.")
    return found


def _unasked(prompts: Sequence[Prompt], asked: Sequence[Prompt]) -> list[Prompt]:
    """The prompts whose question no test asks; how many were left out is said."""
    leaking = {leak.row for leak in find_leaks(prompts, asked)}
    if leaking:
        say(f"{len(leaking):,} of {len(prompts):,} prompts are asked in a test as well, and left out of training.")
    return [prompt for row, prompt in enumerate(prompts) if row not in leaking]


def _named(
    train: Sequence[Prompt],
    development: Sequence[Prompt],
    calibration: Sequence[Prompt],
    tests: Mapping[str, Sequence[Prompt]],
) -> dict[str, Sequence[Prompt]]:
    clash = {TRAIN, DEVELOPMENT, CALIBRATION} & set(tests)
    if clash:
        raise RecipeError(f"A test table cannot be called {clash.pop()!r}.")
    return {TRAIN: train, DEVELOPMENT: development, CALIBRATION: calibration, **tests}


def _where(prompts: Sequence[Prompt], keep: Sequence[bool]) -> list[Prompt]:
    return [prompt for prompt, kept in zip(prompts, keep, strict=True) if kept]
