"""Rows that teach a model to trust the condition: P(answer | prompt, z) in which z decides, and the prompt does not.

A model that learns to refuse harmful requests only looks again at each request, on its surface, and overrules a right
decision in languages where it knows no harm. Refusing in a language needs no safety data in that language: harmless
text in it, the condition, and a refusal in that language are enough.
"""

from collections.abc import Callable, Sequence

from lasa.data.preferences import Preference
from lasa.data.prompts import Prompt
from lasa.data.refusals import Refusals, refusals_in
from lasa.errors import DataError


def trusting_rows(
    preferences: Sequence[Preference],
    harmless: Sequence[Prompt],
    refusals: Refusals,
    second_look: float,
    scores: Callable[[Sequence[Prompt]], Sequence[float]],
    seed: int,
) -> list[Preference]:
    """Rows each of which is to have the condition.

    Args:
        preferences: The harmful requests among them keep their refusals; the others serve for the second look.
        harmless: Harmless text in every language that the model is to refuse in.
        refusals: What it is answered with.
        second_look: Share of the rows, `[0, 1)`, that are harmless requests with their helpful answers: those that the
            interpreter flags, or comes closest to flagging.
        scores: The interpreter's probabilities of prompts; called for a second look alone.
        seed: Of the refusals' order.

    Raises:
        DataError: There is no harmless text or no refusal in one of its languages, or there are too few harmless
            requests for the second look.
    """
    text = [prompt for prompt in harmless if prompt.harmful is not True]
    if not text:
        raise DataError(
            "Refusals are to be learned from harmless text, and there is none. Name sources of it in any language "
            "(alignment.harmless, or --harmless), or set refusals_from: preferences."
        )
    refused = refusals_in([prompt.language for prompt in text], refusals, seed)
    rows = [one for one in preferences if one.prompt.harmful and one.chosen is not None]
    rows += [Preference(prompt, refusal, None) for prompt, refusal in zip(text, refused, strict=True)]
    count = round(len(rows) * second_look / (1 - second_look))
    helpful = [one for one in preferences if one.prompt.harmful is False and one.chosen is not None]
    if count > len(helpful):
        raise DataError(
            f"second_look={second_look} asks for {count:,} harmless requests with an answer beside {len(rows):,} "
            f"refusals; the preferences have {len(helpful):,}. Add some, or lower it."
        )
    if count:
        given = scores([one.prompt for one in helpful])
        order = sorted(range(len(helpful)), key=lambda row: -given[row])
        rows += [helpful[row] for row in order[:count]]
    return rows
