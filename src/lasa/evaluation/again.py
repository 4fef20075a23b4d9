"""Decisions made again: does the guard decide here, on this device and in this precision, as where it was measured?

Thresholds hold for the states they were chosen on. Another accelerator, precision, attention kernel or version rounds
these states otherwise, and a prompt close to a threshold may fall on its other side.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lasa.errors import DataError
from lasa.evaluation.outcomes import Sample
from lasa.guard.guard import Guard
from lasa.interpreter.drift import Drift, compare_decisions
from lasa.languages import sort_languages

SAME_BOUND = 0.01
"""Share of changed decisions above which two machines do not decide alike, unless another is asked for."""


@dataclass(frozen=True)
class DecidedAgain:
    """The decisions of samples beside those that are made on the same prompts now.

    Attributes:
        drift: How far scores and decisions moved.
        languages: How many decisions changed in each language; those without any left out.
    """

    drift: Drift
    languages: dict[str, int]

    @property
    def verdict(self) -> str:
        """What was found, as a sentence; a warning where the bound is exceeded."""
        where = ", ".join(f"{code or 'no language'} {count}" for code, count in self.languages.items())
        found = f"{self.drift.found}, {self.drift.largest_shift:.3f} at most{f' (changed: {where})' if where else ''}"
        if not self.drift.exceeded:
            return f"{found}. Within the bound of {self.drift.bound:.1%}."
        return (
            f"Warning: {found}. That is above the bound of {self.drift.bound:.1%}: what was measured does not hold "
            "here. Evaluate again on this machine, or load the model as it was there (dtype, attention, four_bit)."
        )


def decide_again(guard: Guard, samples: Sequence[Sample], bound: float = SAME_BOUND) -> DecidedAgain:
    """Make the decisions of a guarded system's samples again; nothing is answered.

    Args:
        guard: The guard, as it is loaded here.
        samples: Of the same system; those without a decision (too long to be read, say) are left out.
        bound: Share of changed decisions that is tolerated.

    Raises:
        DataError: No sample has a decision.
    """
    decided = [sample for sample in samples if sample.flagged is not None]
    if not decided:
        raise DataError("These samples hold no decisions: their system was not guarded. Give those of a guarded one.")
    prompts = [sample.prompt for sample in decided]
    now = guard.decide(
        [prompt.messages for prompt in prompts],
        [prompt.language or None for prompt in prompts],
        [str(prompt.details.get("prefill", "")) for prompt in prompts],
    )
    was = [bool(sample.flagged) for sample in decided]
    drift = compare_decisions(
        ([sample.score for sample in decided], was),
        ([one.score for one in now], [one.flagged for one in now]),
        prompts,
        bound,
    )
    changed = Counter(p.language for p, before, one in zip(prompts, was, now, strict=True) if before != one.flagged)
    return DecidedAgain(drift, {code: changed[code] for code in sort_languages(set(changed))})
