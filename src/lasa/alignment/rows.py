"""From preference tables to token rows: exactly the tokens that the guard will see, conditioned on the same signal.

A row is a rendered prompt, the condition's token ids where the signal says so, and a completion that ends with the
turn's own terminator; a block of reasoning that the chat template opens is closed before the answer. The signal is by
default the interpreter's hard decision, so that benign prompts it wrongly flags teach the model to help in spite of the
condition, and harmful ones it misses teach it to refuse without. The soft signal puts the interpreter's probability in
place of its decision (see `lasa.models.soft_condition`).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lasa.alignment.settings import Signal
from lasa.conditioning.condition import completion_ids, place_condition
from lasa.data.preferences import Preference
from lasa.data.prompts import Prompt
from lasa.errors import DataError
from lasa.models.rendering import render, turn_end_ids
from lasa.models.thinking import answer_header, answer_in_block, block_end, opened_block, thinking_tail


@dataclass(frozen=True)
class TrainingExample:
    """One completion of one prompt.

    Attributes:
        prompt_ids: Rendered prompt, followed by the condition where the signal asked for it.
        completion_ids: Answer and terminator, behind the end of a block of reasoning that the prompt has opened.
        desirable: Whether the answer is the preferred one.
        query_id: Meaning of the prompt, to keep KL partners apart.
        language: Language of the prompt.
        conditioned: Whether the condition is there.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    desirable: bool
    query_id: str
    language: str
    conditioned: bool


def decisions(
    preferences: Sequence[Preference],
    signal: Signal,
    interpret: Callable[[Sequence[Prompt]], list[bool]],
    seed: int = 0,
) -> list[bool]:
    """Whether each preference is conditioned.

    Args:
        preferences: The table.
        signal: Where the decision comes from; any but `soft`, which decides nothing.
        interpret: The interpreter's decisions on prompts; called for `interpreter` alone.
        seed: Of the coin of `sampled`.
    """
    if signal == "none":
        return [False] * len(preferences)
    if signal == "always":
        return [True] * len(preferences)
    if signal == "label":
        return [bool(p.prompt.harmful) for p in preferences]
    if signal == "sampled":
        coin = random.Random(seed)
        return [bool(p.prompt.harmful) and coin.random() < 0.5 for p in preferences]
    return interpret([p.prompt for p in preferences])


def wrong_language_refusals(preferences: Sequence[Preference], share: float, seed: int) -> list[Preference]:
    """Refusals in another language as undesirable answers to a share of the harmful prompts.

    Preference data in a few languages must not teach a model to refuse a Thai request in English.

    Args:
        preferences: The table; the refusals are its own desirable answers to harmful prompts.
        share: Of the harmful prompts with a desirable answer, `[0, 1]`.
        seed: Of the draws.

    Raises:
        DataError: The harmful prompts are all in one language.
    """
    harmful = [p for p in preferences if p.prompt.harmful and p.chosen is not None]
    draw = random.Random(f"{seed}/wrong-language")
    by_language: dict[str, list[str]] = {}
    for one in harmful:
        by_language.setdefault(one.prompt.language, []).append(str(one.chosen))
    if share and len(by_language) < 2:
        raise DataError(
            "Refusals in the wrong language are drawn from harmful rows in other languages; these preferences have "
            f"harmful rows in {len(by_language)} language(s). Set wrong_language_refusals to 0."
        )
    found = []
    for one in draw.sample(harmful, round(share * len(harmful))):
        other = draw.choice(sorted(by_language.keys() - {one.prompt.language}))
        found.append(replace(one, chosen=None, rejected=draw.choice(by_language[other])))
    return found


def token_rows(
    tokenizer: Any, preferences: Sequence[Preference], conditions: Sequence[Sequence[int]], seed: int
) -> list[TrainingExample]:
    """Tokenize preferences into unpaired rows, shuffled so that labels, languages and prompts are mixed.

    Args:
        tokenizer: The model's.
        preferences: The table.
        conditions: Token ids of each preference's condition; empty where there is none.
        seed: Of the order.
    """
    turn_end, thinking, header = turn_end_ids(tokenizer), thinking_tail(tokenizer), answer_header(tokenizer)
    opened, end = opened_block(tokenizer), block_end(tokenizer)
    rows = []
    for preference, condition in zip(preferences, conditions, strict=True):
        prompt_ids = render(tokenizer, preference.prompt.messages).token_ids
        prompt_ids = place_condition(prompt_ids, condition, thinking, header) if condition else [*prompt_ids, *header]
        for side, text in (("chosen", preference.chosen), ("rejected", preference.rejected)):
            if text is not None:
                ends = () if preference.unfinished == side else turn_end
                rows.append(
                    TrainingExample(
                        prompt_ids,
                        completion_ids(tokenizer, answer_in_block(text, opened, end), ends),
                        side == "chosen",
                        preference.prompt.query_id,
                        preference.prompt.language,
                        bool(condition),
                    )
                )
    random.Random(seed).shuffle(rows)
    return rows


def separate_partners(rows: Sequence[TrainingExample], batch_size: int) -> list[TrainingExample]:
    """Reorder so that no row's KL partner, the row before it in its batch, asks the same query.

    KTO estimates its KL term on mismatched pairs: the completion of the row before. For a pair of one prompt the
    completion would match.

    Args:
        rows: Shuffled rows.
        batch_size: Rows of a batch on one device; the first row's partner is the last of its batch.

    Raises:
        DataError: There are too few different queries to keep them apart.
    """
    rows = list(rows)[: len(rows) - len(rows) % batch_size] if len(rows) > batch_size else list(rows)
    for index in range(len(rows)):
        if not _clashes(rows, index, batch_size):
            continue
        for other in [*range(index + batch_size, len(rows)), *range(index)]:
            rows[index], rows[other] = rows[other], rows[index]
            if not any(
                _clashes(rows, i, batch_size) for place in (index, other) for i in _around(place, rows, batch_size)
            ):
                break
            rows[index], rows[other] = rows[other], rows[index]
        else:
            raise DataError(
                "Too few different queries to form mismatched KL pairs. Add prompts or lower the batch size."
            )
    return rows


def kl_partners(rows: Sequence[TrainingExample], batch_size: int) -> list[list[int]]:
    """The mismatched completion of each row: that of its partner."""
    return [rows[_partner(index, len(rows), batch_size)].completion_ids for index in range(len(rows))]


def _partner(index: int, count: int, batch_size: int) -> int:
    first = index - index % batch_size
    return index - 1 if index > first else min(first + batch_size, count) - 1


def _around(index: int, rows: Sequence[TrainingExample], batch_size: int) -> list[int]:
    """Rows whose pairing involves `index`."""
    first = index - index % batch_size
    last = min(first + batch_size, len(rows)) - 1
    return [index, index + 1 if index < last else first]


def _clashes(rows: Sequence[TrainingExample], index: int, batch_size: int) -> bool:
    return rows[index].query_id == rows[_partner(index, len(rows), batch_size)].query_id
