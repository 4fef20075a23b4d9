"""The condition: a sentence at the start of the assistant's turn (LASA, section 5), as token ids.

It goes right after the generation prompt (and the template's header of an answer, where there is one) and before
anything the assistant says, and is never merged with what follows it.
"""

from collections.abc import Sequence
from typing import Any

from lasa.errors import RecipeError

DEFAULT_CONDITION = (
    "Harmful query detected. I should refuse this request and provide a safe response in the user's language."
)
"""The paper's conditional text."""


def condition_ids(tokenizer: Any, text: str = DEFAULT_CONDITION) -> list[int]:
    """Token ids of the condition.

    Raises:
        RecipeError: The text is empty, or begins or ends in white space (which would merge with its neighbours).
    """
    if not text.strip() or text != text.strip():
        raise RecipeError(f"The condition {text!r} must be a text without white space at its ends.")
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def place_condition(
    prompt_ids: Sequence[int],
    condition: Sequence[int],
    thinking_tail: Sequence[int] = (),
    header: Sequence[int] = (),
) -> list[int]:
    """A rendered prompt with the condition in place, as the model is trained and run.

    Args:
        prompt_ids: The rendered prompt.
        condition: Token ids of the condition.
        thinking_tail: `thinking.thinking_tail`: where the template opens a block of reasoning, the condition goes
            before the block and again into it.
        header: `thinking.answer_header`: what the template writes before an answer; the condition comes after it.
    """
    if not thinking_tail:
        return [*prompt_ids, *header, *condition]
    return [*prompt_ids[: -len(thinking_tail)], *condition, *thinking_tail, *condition]


def completion_ids(tokenizer: Any, text: str, turn_end: Sequence[int]) -> list[int]:
    """Token ids of an assistant's answer with the turn's own terminator, as the model is trained to produce it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*ids, *turn_end]
