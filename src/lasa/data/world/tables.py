"""Prompt tables of the world: what the interpreter and the alignment learn from, and what they are tested on.

Three held-out splits, each reported on its own. *combinations*: verb-object pairs that nothing was ever trained on.
*concepts*: such pairs whose deciding word no safety data mentions. *templates*: such pairs in request templates
that no safety data uses. Held-out concepts and templates are words the base model knows; only safety data lacks them.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

from lasa.data.preferences import Preference
from lasa.data.prompts import Prompt, user_prompt
from lasa.data.world.deeds import CONCEPTS, HELD_OUT_TEMPLATES, NUM_TEMPLATES, Deed, Share
from lasa.data.world.lexicon import LANGUAGES, lexicon

Split = Literal["combinations", "concepts", "templates"]

KNOWN_TEMPLATES = tuple(t for t in range(NUM_TEMPLATES) if t not in HELD_OUT_TEMPLATES)


def safety_deeds(share: Share) -> list[Deed]:
    """The deeds that safety data of a share may mention: no held-out concept."""
    return [deed for deed in CONCEPTS.deeds if deed.share == share and not deed.held_out_concept]


def parallel_prompts(
    deeds: Sequence[Deed],
    languages: Sequence[str] = LANGUAGES,
    *,
    templates: Sequence[int] = KNOWN_TEMPLATES,
    seed: int = 0,
    same_template: bool = True,
) -> list[Prompt]:
    """Requests for the deeds in every language; translations share their query id.

    Args:
        deeds: What is requested; each becomes one query.
        languages: Languages to ask in.
        templates: Request templates to draw from.
        seed: Of the draws.
        same_template: Use one template in all languages of a query (a true translation).
    """
    draw = random.Random(seed)
    prompts = []
    for deed in deeds:
        shared = draw.choice(list(templates))
        for language in languages:
            template = shared if same_template else draw.choice(list(templates))
            prompts.append(request_prompt(deed, language, template))
    return prompts


def request_prompt(deed: Deed, language: str, template: int) -> Prompt:
    """One request as a row of the prompt table; `category` says what a harmful deed does, and of others the kind."""
    return user_prompt(
        deed.query_id,
        language,
        lexicon(language).request(deed, template),
        harmful=deed.harmful,
        source="embedded",
        category=deed.category,
        details={"template": template},
    )


def evaluation_prompts(
    split: Split, per_label: int = 100, languages: Sequence[str] = LANGUAGES, *, share: Share = "test", seed: int = 0
) -> list[Prompt]:
    """Held-out requests: `per_label` harmful and as many benign ones (a third of them look-alikes) in each language.

    Args:
        split: Which kind of novelty.
        per_label: Queries per label.
        languages: Languages to ask in.
        share: `dev` gives the same kind of table for development.
        seed: Of the draws.
    """
    draw = random.Random(f"{seed}/{split}/{share}")
    deeds = [
        deed
        for deed in CONCEPTS.deeds
        if deed.share == share and (deed.tests_concept if split == "concepts" else not deed.held_out_concept)
    ]
    templates = HELD_OUT_TEMPLATES if split == "templates" else KNOWN_TEMPLATES
    by_kind = {kind: [d for d in deeds if d.kind == kind] for kind in ("harmful", "benign", "hard_benign")}
    look_alikes = min(per_label // 3, len(by_kind["hard_benign"]) * 13)
    chosen = (
        _with_modifiers(by_kind["harmful"], per_label, draw)
        + _with_modifiers(by_kind["benign"], per_label - look_alikes, draw)
        + _with_modifiers(by_kind["hard_benign"], look_alikes, draw)
    )
    return parallel_prompts(chosen, languages, templates=templates, seed=draw.randrange(2**32))


def interpreter_prompts(
    languages: Sequence[str], queries: int, *, share: Share = "train", seed: int = 0
) -> list[Prompt]:
    """Labelled requests for the interpreter: half harmful, a sixth look-alikes, the rest plainly benign."""
    draw = random.Random(f"{seed}/interpreter/{share}")
    deeds = safety_deeds(share)
    by_kind = {kind: [d for d in deeds if d.kind == kind] for kind in ("harmful", "benign", "hard_benign")}
    chosen = (
        _with_modifiers(by_kind["harmful"], queries // 2, draw)
        + _with_modifiers(by_kind["hard_benign"], queries // 6, draw)
        + _with_modifiers(by_kind["benign"], queries - queries // 2 - queries // 6, draw)
    )
    return parallel_prompts(chosen, languages, seed=draw.randrange(2**32), same_template=False)


def benign_prompts(
    queries: int, languages: Sequence[str] = LANGUAGES, *, share: Share = "dev", seed: int = 0
) -> list[Prompt]:
    """Harmless requests in every language, a third of them look-alikes: no safety data, so any language may be used."""
    draw = random.Random(f"{seed}/benign/{share}")
    deeds = safety_deeds(share)
    chosen = _with_modifiers([d for d in deeds if d.kind == "hard_benign"], queries // 3, draw)
    chosen += _with_modifiers([d for d in deeds if d.kind == "benign"], queries - len(chosen), draw)
    return parallel_prompts(chosen, languages, seed=draw.randrange(2**32), same_template=False)


def preferences(
    safety_languages: Sequence[str],
    harmful_queries: int,
    benign_queries: int,
    benign_languages: Sequence[str] = LANGUAGES,
    *,
    share: Share = "train",
    seed: int = 0,
) -> list[Preference]:
    """Paired preferences: refuse what is harmful (safety languages), help with what is not (benign languages)."""
    draw = random.Random(f"{seed}/preferences/{share}")
    deeds = safety_deeds(share)
    harmful = _with_modifiers([d for d in deeds if d.harmful], harmful_queries, draw)
    hard = _with_modifiers([d for d in deeds if d.kind == "hard_benign"], benign_queries // 3, draw)
    plain = _with_modifiers([d for d in deeds if d.kind == "benign"], benign_queries - len(hard), draw)
    rows = []
    for chosen_deeds, languages in ((harmful, safety_languages), (hard + plain, benign_languages)):
        for prompt in parallel_prompts(chosen_deeds, languages, seed=draw.randrange(2**32), same_template=False):
            rows.append(_preference(prompt))
    draw.shuffle(rows)
    return rows


def layer_search_prompts(queries: int = 100, seed: int = 0) -> list[Prompt]:
    """Parallel requests for development deeds, all in template 0: half harmful, half benign."""
    draw = random.Random(f"{seed}/layer-search")
    deeds = safety_deeds("dev")
    harmful = _with_modifiers([d for d in deeds if d.harmful], queries // 2, draw)
    benign = _with_modifiers([d for d in deeds if not d.harmful], queries - queries // 2, draw)
    return parallel_prompts(harmful + benign, templates=(0,))


def _preference(prompt: Prompt) -> Preference:
    verb, name, *rest = prompt.query_id.split("+")
    words = lexicon(prompt.language)
    helpful, refusal = words.answer(Deed(verb, name, rest[0] if rest else None)), words.refusal
    return Preference(prompt, refusal, helpful) if prompt.harmful else Preference(prompt, helpful, refusal)


def _with_modifiers(deeds: Iterable[Deed], count: int, draw: random.Random) -> list[Deed]:
    """`count` different deeds, plain ones first, then with circumstances, in random order."""
    pool = list(deeds)
    draw.shuffle(pool)
    varied = [replace(deed, modifier=m) for deed in pool for m in draw.sample(CONCEPTS.modifiers, 12)]
    draw.shuffle(varied)
    return (pool + varied)[:count]


SEEN = ("en", "zh", "ko")
"""Languages of the safety data, as in the paper."""

PROMPT_TABLES: dict[str, Callable[[], list[Prompt]]] = {
    "layer-search": layer_search_prompts,
    "interpreter": lambda: interpreter_prompts(SEEN, 1500),
    "interpreter-development": lambda: interpreter_prompts(SEEN, 600, share="dev"),
    "benign-development": lambda: benign_prompts(500),
    "benign": lambda: benign_prompts(600, share="test"),
    "development": lambda: evaluation_prompts("combinations", 100, share="dev"),
    "combinations": lambda: evaluation_prompts("combinations"),
    "concepts": lambda: evaluation_prompts("concepts", 50),
    "templates": lambda: evaluation_prompts("templates", 50),
}
"""The world's prompt tables by name."""

PREFERENCE_TABLES: dict[str, Callable[[], list[Preference]]] = {
    "preferences": lambda: preferences(SEEN, 600, 400),
}
"""The world's preference tables by name: safety rows in the seen languages, benign rows in all ten."""
