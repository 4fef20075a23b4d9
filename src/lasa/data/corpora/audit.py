"""What is in a prompt table, and what training and evaluation have in common.

A model trained on a question must not be scored on it, in whichever language either was. Used before every
training and every evaluation.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lasa.data.corpora.harmful import HARD_BENIGN
from lasa.data.corpora.lasa_official import HARMBENCH_ROW
from lasa.data.corpora.licences import NOT_STATED, licence_of
from lasa.data.prompts import Prompt
from lasa.errors import DataError
from lasa.languages import sort_languages

Match = Literal["exact", "normalised"]


@dataclass(frozen=True)
class Count:
    """How many prompts, and how many different queries, a table has of one kind.

    Attributes:
        language: BCP-47 code.
        source: The prompts' source.
        label: `harmful`, `benign`, `hard_benign` or `unlabelled`.
        prompts: Number of rows.
        queries: Number of different query ids.
        licence: Of the source.
    """

    language: str
    source: str
    label: str
    prompts: int
    queries: int
    licence: str = NOT_STATED


@dataclass(frozen=True)
class Duplicate:
    """A prompt that is in two tables: positions in both, and how alike the texts are."""

    left: int
    right: int
    match: Match


@dataclass(frozen=True)
class Leak:
    """A training row whose question the evaluation asks.

    Attributes:
        row: Position in the training table.
        query_id: The training row's query.
        source: The training row's source.
        evaluation_source: Source of the evaluation prompt it gives away.
        kind: `exact` or `normalised`: the texts agree; `same_query`: another row of the same query, in this language or
            in another; `unresolved`: a HarmBench behaviour that is known by its row number only, and may be any.
    """

    row: int
    query_id: str
    source: str
    evaluation_source: str
    kind: Literal["exact", "normalised", "same_query", "unresolved"]


def count_prompts(prompts: Iterable[Prompt]) -> list[Count]:
    """Counts by language, source and label, the paper's languages first."""
    rows: Counter[tuple[str, str, str]] = Counter()
    queries: dict[tuple[str, str, str], set[str]] = {}
    for prompt in prompts:
        key = (prompt.language, prompt.source, _label(prompt))
        rows[key] += 1
        queries.setdefault(key, set()).add(prompt.query_id)
    order = {code: position for position, code in enumerate(sort_languages({language for language, _, _ in rows}))}
    keys = sorted(rows, key=lambda key: (order[key[0]], *key[1:]))
    return [Count(*key, rows[key], len(queries[key]), licence_of(key[1])) for key in keys]


def normalise(text: str) -> str:
    """Text as compared for near-duplicates: NFKC and casefolded, letters, marks, digits and symbols only.

    Whitespace, punctuation, control and zero-width characters are removed. A text of nothing else is kept as it is, so
    that two such texts are not taken for the same.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(char for char in folded if _is_visible(char)) or text


def near_duplicates(left: Sequence[Prompt], right: Sequence[Prompt]) -> list[Duplicate]:
    """Prompts of one table whose last user message is also in another table.

    A contextual HarmBench behaviour of the right table is also found by the behaviour alone, without its context.

    Returns:
        At most one entry per prompt of `left`, in order: the first exact match, else the first normalised one.
    """
    exact: dict[str, int] = {}
    normalised: dict[str, int] = {}
    for position, prompt in enumerate(right):
        for text in (prompt.text, prompt.details.get("behavior")):
            if isinstance(text, str):
                exact.setdefault(text, position)
                normalised.setdefault(normalise(text), position)
    found = []
    for position, prompt in enumerate(left):
        if prompt.text in exact:
            found.append(Duplicate(position, exact[prompt.text], "exact"))
        elif (key := normalise(prompt.text)) in normalised:
            found.append(Duplicate(position, normalised[key], "normalised"))
    return found


def find_leaks(train: Sequence[Prompt], evaluation: Sequence[Prompt]) -> list[Leak]:
    """Training rows whose question is also in the evaluation, by text, by query id, or through a translation.

    A query leaks with all its rows as soon as one of them does. Query ids are compared within one source.
    The rows the paper's authors trained on name HarmBench behaviours by row number: those without an English row
    beside them cannot be compared and are `unresolved` when standard HarmBench behaviours are evaluated;
    `lasa.data.corpora.lasa_official.with_harmbench_ids` resolves them.

    Returns:
        At most one leak per training row, in order.
    """
    matches = {duplicate.left: duplicate for duplicate in near_duplicates(train, evaluation)}
    leaking = {prompt.question: prompt.source for prompt in evaluation}
    for row, duplicate in matches.items():
        leaking.setdefault(train[row].question, evaluation[duplicate.right].source)
    in_english = {prompt.question for prompt in train if prompt.language == "en"}
    standard = any(
        p.source == "harmbench" and p.details.get("functional_category", "standard") == "standard" for p in evaluation
    )
    leaks = []
    for row, prompt in enumerate(train):
        query = prompt.question
        if row in matches:
            duplicate = matches[row]
            leaks.append(Leak(row, prompt.query_id, prompt.source, evaluation[duplicate.right].source, duplicate.match))
        elif query in leaking:
            leaks.append(Leak(row, prompt.query_id, prompt.source, leaking[query], "same_query"))
        elif standard and prompt.query_id.startswith(HARMBENCH_ROW) and query not in in_english:
            leaks.append(Leak(row, prompt.query_id, prompt.source, "harmbench", "unresolved"))
    return leaks


def check_no_leaks(train: Sequence[Prompt], evaluation: Sequence[Prompt], allow: bool = False) -> list[Leak]:
    """Stop where a model would be scored on what it was trained on.

    Args:
        train: The training table.
        evaluation: The evaluation table.
        allow: Return the leaks instead of raising, for whoever reports them beside the scores.

    Raises:
        DataError: Training rows leak; the message counts them by source and names the first query ids, not their text.
    """
    leaks = find_leaks(train, evaluation)
    if not leaks or allow:
        return leaks
    pairs = Counter((leak.source or "(no source)", leak.evaluation_source or "(no source)") for leak in leaks)
    by_source = ", ".join(f"{count} from {a} in {b}" for (a, b), count in pairs.most_common())
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(leak.kind for leak in leaks).most_common())
    queries = list(dict.fromkeys(leak.query_id for leak in leaks))
    raise DataError(
        f"{len(leaks)} of {len(train)} training rows ({len(queries)} queries) are also asked in the evaluation: "
        f"{by_source} ({kinds}). First query ids: {', '.join(queries[:5])}{', ...' if len(queries) > 5 else ''}. "
        "Remove these queries from either table (leaks: drop leaves them out of training), or allow the leak and "
        "report it with the scores."
    )


def _label(prompt: Prompt) -> str:
    if prompt.harmful is None:
        return "unlabelled"
    if prompt.harmful:
        return "harmful"
    return HARD_BENIGN if prompt.category == HARD_BENIGN else "benign"


def _is_visible(char: str) -> bool:
    variation_selector = "\ufe00" <= char <= "\ufe0f" or char == "\u034f"
    return unicodedata.category(char)[0] not in "ZPC" and not variation_selector
