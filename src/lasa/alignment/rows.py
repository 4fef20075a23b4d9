"""From preference tables to token rows: exactly the tokens that the guard will see, conditioned on the same signal.

A row is a rendered prompt, the condition's token ids where the signal says so, and a completion that ends with the
turn's own terminator. The signal is by default the interpreter's hard decision, so that benign prompts it wrongly
flags teach the model to help in spite of the condition, and harmful ones it misses teach it to refuse without. The
soft signal puts the interpreter's probability in place of its decision (see `lasa.soft_condition`).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lasa.conditioning import completion_ids, place_condition
from lasa.errors import DataError
from lasa.languages import canonical_language
from lasa.prompts import Prompt, parse_messages
from lasa.rendering import render, turn_end_ids
from lasa.table_files import read_rows
from lasa.thinking import thinking_tail

Signal = Literal["interpreter", "soft", "label", "sampled", "none"]
"""`interpreter`: the SSI's decision; `soft`: its probability, as a learned embedding; `label`: the row's own label (an
oracle); `sampled`: a coin for harmful rows, as in the public code; `none`: never conditioned (surface tuning)."""


@dataclass(frozen=True)
class Preference:
    """A prompt with a preferred and a dispreferred answer; one of the two may be missing (unpaired data).

    Attributes:
        prompt: The conversation, its language, query and label.
        chosen: The desirable answer.
        rejected: The undesirable answer.
    """

    prompt: Prompt
    chosen: str | None
    rejected: str | None


@dataclass(frozen=True)
class TokenRow:
    """One completion of one prompt.

    Attributes:
        prompt_ids: Rendered prompt, followed by the condition where the signal asked for it.
        completion_ids: Answer and terminator.
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


def read_preferences(path: Path) -> list[Preference]:
    """Read preferences: `prompt` (text or messages), `chosen` and/or `rejected`, `language`, `harmful`.

    An answer is a text, or a list with one message of the assistant. Unpaired files with `completion` and `label`
    (true for desirable) are understood as well.

    Raises:
        DataError: A column is missing or a row is malformed; file and row are named.
    """
    found = []
    for number, row in enumerate(read_rows(path), 1):
        where = f"{path}: row {number}"
        if "completion" in row and "label" in row:
            row = {**row, "chosen" if _truth(where, "label", row["label"]) else "rejected": row["completion"]}
        messages = parse_messages(where, "prompt", row.get("prompt"))
        chosen, rejected = (_answer(where, side, row.get(side)) for side in ("chosen", "rejected"))
        if chosen is None and rejected is None:
            raise DataError(f"{where}: needs an answer in 'chosen' or 'rejected' (or 'completion' with 'label').")
        try:
            language = canonical_language(str(row.get("language") or ""))
        except DataError as error:
            raise DataError(f"{where}, column 'language': {error}") from None
        harmful = _truth(where, "harmful", row.get("harmful"))
        query = str(row.get("query_id") or row.get("id") or number)
        found.append(Preference(Prompt(query, language, messages, harmful, path.stem), chosen, rejected))
    return found


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
) -> list[TokenRow]:
    """Tokenize preferences into unpaired rows, shuffled so that labels, languages and prompts are mixed.

    Args:
        tokenizer: The model's.
        preferences: The table.
        conditions: Token ids of each preference's condition; empty where there is none.
        seed: Of the order.
    """
    turn_end, thinking = turn_end_ids(tokenizer), thinking_tail(tokenizer)
    rows = []
    for preference, condition in zip(preferences, conditions, strict=True):
        prompt_ids = render(tokenizer, preference.prompt.messages).token_ids
        if condition:
            prompt_ids = place_condition(prompt_ids, condition, thinking)
        for text, desirable in ((preference.chosen, True), (preference.rejected, False)):
            if text is not None:
                rows.append(
                    TokenRow(
                        prompt_ids,
                        completion_ids(tokenizer, text, turn_end),
                        desirable,
                        preference.prompt.query_id,
                        preference.prompt.language,
                        bool(condition),
                    )
                )
    random.Random(seed).shuffle(rows)
    return rows


def separate_partners(rows: Sequence[TokenRow], batch_size: int) -> list[TokenRow]:
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


def kl_partners(rows: Sequence[TokenRow], batch_size: int) -> list[list[int]]:
    """The mismatched completion of each row: that of its partner."""
    return [rows[_partner(index, len(rows), batch_size)].completion_ids for index in range(len(rows))]


def _partner(index: int, count: int, batch_size: int) -> int:
    first = index - index % batch_size
    return index - 1 if index > first else min(first + batch_size, count) - 1


def _around(index: int, rows: Sequence[TokenRow], batch_size: int) -> list[int]:
    """Rows whose pairing involves `index`."""
    first = index - index % batch_size
    last = min(first + batch_size, len(rows)) - 1
    return [index, index + 1 if index < last else first]


def _clashes(rows: Sequence[TokenRow], index: int, batch_size: int) -> bool:
    return rows[index].query_id == rows[_partner(index, len(rows), batch_size)].query_id


def _answer(where: str, column: str, cell: object) -> str | None:
    if cell is None or cell == "":
        return None
    if isinstance(cell, list) and len(cell) == 1 and isinstance(cell[0], dict) and cell[0].get("role") == "assistant":
        cell = cell[0].get("content")
    if not isinstance(cell, str):
        raise DataError(
            f"{where}, column {column!r}: expected a text or a list with one message of the assistant, "
            f"found {type(cell).__name__}. What comes before the answer belongs into 'prompt'."
        )
    if not cell.strip():
        raise DataError(f"{where}, column {column!r}: the answer is empty.")
    return cell


def _truth(where: str, column: str, cell: object) -> bool:
    """A truth value, also as a table without types writes it."""
    text = str(cell).strip().lower()
    if text not in ("true", "yes", "1", "false", "no", "0"):
        raise DataError(f"{where}, column {column!r}: expected true or false, found {cell!r:.60}.")
    return text in ("true", "yes", "1")
