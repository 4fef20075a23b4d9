"""What an interpreter says beside its score: the kind of harm, harm in the answer, how far a language is covered."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Probability = Annotated[float, Field(ge=0, le=1)]

Grade = Literal["covered", "partly", "not covered"]
"""How far an interpreter can be expected to hold in a language."""


@dataclass(frozen=True)
class CategoryHead:
    """How the head that names the kind of harm is used; its weights are the interpreter's `kinds`.

    Attributes:
        names: The categories (see `lasa.data.harm`) that it tells apart.
        temperature: Divides its logits.
        threshold: Probability from which the likeliest category is named; below it none is.
    """

    names: Annotated[tuple[str, ...], Field(min_length=2)]
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    threshold: Probability = 0.5


@dataclass(frozen=True)
class AnswerHead:
    """How the head for answers is used; its weights are the interpreter's `answers`.

    Attributes:
        window: Tokens of an answer whose mean logit is its score.
        threshold: Probability from which the answer is stopped.
    """

    window: Annotated[int, Field(ge=1)]
    threshold: Probability = 0.5


@dataclass(frozen=True)
class Reading:
    """What an interpreter reads in one hidden state.

    Attributes:
        score: Calibrated probability that the prompt is harmful.
        categories: Probability of each of the interpreter's categories, if it is harmful; empty where it has none.
    """

    score: float
    categories: tuple[float, ...] = ()
