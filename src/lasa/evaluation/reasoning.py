"""Reasoning before an answer: told apart from it, because only the answer is what a person gets, and what is judged.

Most reasoning models mark their thoughts. Some chat templates open the block themselves, so that a text has only its
end; and where the length limit cuts the thoughts short, there is no answer yet.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lasa.models.thinking import CLOSERS, THINKING_MARKERS

UNFINISHED = "unfinished: the reasoning did not end within the length limit"
"""Why a prompt has no answer where a model was still thinking."""


@dataclass(frozen=True)
class Reasoned:
    """A text, told apart.

    Attributes:
        reasoning: The thoughts, without their marks; "" where there are none.
        answer: What was said after them, or None where they did not end.
    """

    reasoning: str
    answer: str | None


def split_reasoning(text: str, *, opened: bool = False) -> Reasoned:
    """Thoughts and answer of a text.

    Closed blocks are thoughts wherever they stand. An end without a beginning closes what the template had opened.

    Args:
        text: What a model wrote.
        opened: Whether the template has opened a block before it.
    """
    thoughts: list[str] = []
    if not text.lstrip().startswith(THINKING_MARKERS):
        ends = [at for closer in CLOSERS.values() if (at := text.find(closer)) >= 0]
        begins = [at for opener in THINKING_MARKERS if (at := text.find(opener)) >= 0]
        if ends and min(ends) < min(begins, default=len(text)):
            [closer] = [closer for closer in CLOSERS.values() if text.find(closer) == min(ends)]
            thought, _, text = text.partition(closer)
            thoughts.append(thought.strip())
        elif opened:
            return Reasoned(text.strip(), None)

    def keep(block: re.Match[str]) -> str:
        thoughts.append(next(part for part in block.groups() if part is not None).strip())
        return ""

    rest = _BLOCKS.sub(keep, text)
    for opener in THINKING_MARKERS:
        if rest.lstrip().startswith(opener):
            return Reasoned("\n\n".join([*thoughts, rest.lstrip()[len(opener) :].strip()]), None)
    return Reasoned("\n\n".join(filter(None, thoughts)), rest.lstrip() if rest != text or thoughts else text)


Marks = list[tuple[list[int], list[int]]]
"""Token ids of the beginnings and ends of thoughts that a text does not show, since they are special tokens."""


def special_marks(tokenizer: Any) -> Marks:
    """The marks of thoughts that are special tokens of a tokenizer, if any."""
    special = set(tokenizer.all_special_ids)
    pairs = (
        tuple(list(tokenizer(mark, add_special_tokens=False)["input_ids"]) for mark in pair) for pair in CLOSERS.items()
    )
    return [(begin, end) for begin, end in pairs if {begin[0], end[0]} & special]


def split_tokens(
    tokenizer: Any, marks: Marks, token_ids: Sequence[int], text: str, *, opened: bool = False
) -> Reasoned:
    """The same for a model's own tokens: marks that are special tokens are not in their text.

    Args:
        tokenizer: The model's.
        marks: Its `special_marks`.
        token_ids: What it wrote.
        text: The same as text.
        opened: Whether the template has opened a block before it.
    """
    for begin, end in marks:
        place = _find(token_ids, end)
        begun = list(token_ids[: len(begin)]) == begin
        if place >= 0:
            thought, answer = token_ids[len(begin) if begun else 0 : place], token_ids[place + len(end) :]
            return Reasoned(*(tokenizer.decode(part, skip_special_tokens=True).strip() for part in (thought, answer)))
        if begun:
            return Reasoned(tokenizer.decode(token_ids[len(begin) :], skip_special_tokens=True).strip(), None)
    return split_reasoning(text, opened=opened)


def _find(token_ids: Sequence[int], wanted: Sequence[int]) -> int:
    width = len(wanted)
    places = range(len(token_ids) - width + 1)
    return next((at for at in places if list(token_ids[at : at + width]) == list(wanted)), -1)


_BLOCKS = re.compile(
    "|".join(f"{re.escape(opener)}(.*?){re.escape(closer)}" for opener, closer in CLOSERS.items()), re.DOTALL
)
