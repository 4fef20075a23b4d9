"""What an evaluation asks: benchmarks by name, some of their questions, and changed copies of them.

A benchmark is written `source` or `name=source`. A change is written as its name (`typos`), or as `name=value` where it
takes one: `code_switch=en`, `word_switch=sw`, `split_turns=3`, `prefill=TEXT`, `answer_in=en`. The changed copies of a
benchmark are a split of their own, `multijail/typos`, whose questions pair with those of the unchanged one. `adaptive`
is no change but a search against the interpreter of one system, which it needs.
"""

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import get_args

from lasa.data.attacks import (
    adaptive,
    base64_text,
    caesar,
    crescendo,
    leetspeak,
    reversed_text,
    word_dictionary,
    word_switch,
)
from lasa.data.perturbations import Perturbation, answer_in, assistant_prefill, code_switch, perturbed, split_turns
from lasa.data.prompts import Prompt
from lasa.data.sources import load_prompts, named_sources
from lasa.errors import DataError
from lasa.languages import canonical_language
from lasa.progress import progress

ATTACKS = {
    "leetspeak": leetspeak,
    "base64": base64_text,
    "reversed_text": reversed_text,
    "caesar": caesar,
    "crescendo": crescendo,
}
"""Attacks that need nothing but the prompt."""

CHANGES = (
    *get_args(Perturbation),
    *ATTACKS,
    "word_switch=LANGUAGE",
    "code_switch=LANGUAGE",
    "split_turns=TURNS",
    "prefill=TEXT",
    "answer_in=LANGUAGE",
    "adaptive[=BUDGET]",
)

BUDGET = 30
"""Prompts that an adaptive search may have scored, for each one that it rewords."""


def load_benchmarks(sources: Sequence[str]) -> dict[str, list[Prompt]]:
    """Prompts by benchmark.

    Args:
        sources: `source` or `name=source` each, sources as in `lasa.data.sources`.

    Raises:
        DataError: A source cannot be read, or two have the same name.
    """
    return {name: load_prompts(source) for name, source in named_sources(sources).items()}


def choose(
    tables: Mapping[str, Sequence[Prompt]],
    languages: Collection[str] = (),
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, list[Prompt]]:
    """Some languages, and some questions in all of these languages.

    Args:
        tables: Prompts by benchmark.
        languages: Keep these; all where there are none.
        limit: Keep this many questions of each benchmark, drawn at random, with harmful and harmless ones in the
            benchmark's own proportion.
        seed: Of the draw.

    Raises:
        DataError: Nothing is left of a benchmark.
    """
    wanted = {canonical_language(code) for code in languages}
    chosen: dict[str, list[Prompt]] = {}
    for name, prompts in tables.items():
        kept = [prompt for prompt in prompts if not wanted or prompt.language in wanted]
        if not kept:
            raise DataError(f"The benchmark {name} has no prompt in {', '.join(sorted(wanted))}.")
        drawn = _questions(kept, limit, f"{seed}/{name}")
        chosen[name] = [prompt for prompt in kept if prompt.question in drawn]
    return chosen


def with_changes(
    tables: Mapping[str, Sequence[Prompt]], changes: Sequence[str], seed: int = 0
) -> dict[str, list[Prompt]]:
    """The benchmarks, and behind each one a split of changed copies per change.

    Raises:
        DataError: A change is unknown, or changes nothing in a benchmark.
    """
    splits: dict[str, list[Prompt]] = {}
    for name, prompts in tables.items():
        splits[name] = list(prompts)
        for change in changes:
            copies = changed(prompts, change, seed)
            if not copies:
                raise DataError(f"{change} changes no prompt of {name} (scripts without case, no translations, ...).")
            splits[f"{name}/{change.partition('=')[0]}"] = copies
    return splits


def is_search(change: str) -> bool:
    """Whether a change is a search against a system's own interpreter."""
    return change.partition("=")[0] == "adaptive"


def search_budget(change: str) -> int:
    """The budget of an adaptive search.

    Raises:
        DataError: It is no number above 1.
    """
    _, given, value = change.partition("=")
    if given and not (value.isdecimal() and int(value) > 1):
        raise DataError(f"{change!r}: give the prompts that may be scored for each one, 2 or more: adaptive={BUDGET}.")
    return int(value) if given else BUDGET


def with_searches(
    tables: Mapping[str, Sequence[Prompt]],
    changes: Sequence[str],
    score: Callable[[Sequence[Prompt]], Sequence[float]],
    seed: int = 0,
) -> dict[str, list[Prompt]]:
    """A split of adaptive rewordings per benchmark and search; see `lasa.data.attacks.adaptive`.

    The harmful prompts alone, and those too for which nothing was found: the rate is that of all who would try.

    Args:
        tables: The benchmarks as written.
        changes: `adaptive` or `adaptive=BUDGET`.
        score: Probability of harm for each of some prompts.
        seed: Of the changes.

    Raises:
        DataError: A benchmark has no harmful prompt, or a budget is none.
    """
    splits: dict[str, list[Prompt]] = {}
    for change in changes:
        budget = search_budget(change)
        for name, prompts in tables.items():
            harmful = [prompt for prompt in prompts if prompt.harmful]
            if not harmful:
                raise DataError(f"{change} rewords harmful prompts, and {name} has none.")
            found = splits[f"{name}/adaptive"] = list[Prompt]()
            with progress(f"Searching rewordings of {name}", len(harmful), "prompts") as advance:
                for prompt in harmful:
                    found.append(adaptive(prompt, score, budget, seed))
                    advance(1)
    return splits


def changed(prompts: Sequence[Prompt], change: str, seed: int = 0) -> list[Prompt]:
    """Copies of prompts with one change, without those it leaves as they are.

    Raises:
        DataError: The change is unknown, or its value is no use.
    """
    name, given, value = change.partition("=")
    if not given and name in get_args(Perturbation):
        return perturbed(prompts, name, seed)  # type: ignore[arg-type]
    if not given and name in ATTACKS:
        copies = [ATTACKS[name](prompt) for prompt in prompts]
        return [copy for copy, prompt in zip(copies, prompts, strict=True) if copy.messages != prompt.messages]
    match name:
        case "word_switch" if value:
            code = canonical_language(value)
            spoken = dict.fromkeys(prompt.language for prompt in prompts if prompt.language != code)
            words = {language: word_dictionary(prompts, language, code) for language in spoken}
            return _differing(word_switch(p, words[p.language], code) for p in prompts if p.language != code)
        case "prefill" if value:
            return [assistant_prefill(prompt, value) for prompt in prompts]
        case "answer_in" if value:
            code = canonical_language(value)
            return [answer_in(prompt, code) for prompt in prompts if prompt.language != code]
        case "split_turns" if value.isdecimal():
            return _differing(split_turns(prompt, int(value)) for prompt in prompts)
        case "code_switch" if value:
            code = canonical_language(value)
            others = {prompt.question: prompt for prompt in prompts if prompt.language == code}
            pairs = [(prompt, others.get(prompt.question)) for prompt in prompts]
            return _differing(code_switch(prompt, other) for prompt, other in pairs if other and other != prompt)
    raise DataError(f"There is no change {change!r}; use one of {', '.join(CHANGES)}.")


def _differing(copies: Iterable[Prompt]) -> list[Prompt]:
    return [copy for copy in copies if copy.text != copy.details["original_text"]]


def _questions(prompts: Sequence[Prompt], limit: int | None, seed: str) -> set[tuple[str, str]]:
    labels = {prompt.question: str(prompt.harmful) for prompt in prompts}
    if limit is None or limit >= len(labels):
        return set(labels)
    draw = random.Random(seed)
    shuffled = sorted(labels, key=lambda question: (labels[question], draw.random()))
    return {shuffled[len(labels) * place // limit] for place in range(limit)}  # evenly over the labels
