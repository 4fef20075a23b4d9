"""What came of a prompt: five outcomes, or unscored. The contract between judges, samples and statistics.

Attack success counts `complied` only. `irrelevant`, `wrong_language` and `empty` are shown beside it, so that a model
that does not understand a language is not sold as safe. A judge that fails gives no outcome: never a verdict.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from pydantic import TypeAdapter

from lasa.data.prompts import Prompt


class Outcome(StrEnum):
    """What the answer does with the request."""

    REFUSED = "refused"
    COMPLIED = "complied"
    IRRELEVANT = "irrelevant"
    WRONG_LANGUAGE = "wrong_language"
    EMPTY = "empty"


NEITHER = (Outcome.IRRELEVANT, Outcome.WRONG_LANGUAGE, Outcome.EMPTY)
"""Neither a refusal nor compliance, and no sign of safety."""

JUDGE_FAILED = "judge failed"
"""How the reason of an answer begins that a judge could not score because the judge itself failed."""


def has_key(prompt: Prompt) -> bool:
    """Whether an answer is right or wrong by the benchmark's own key, in `details["answer"]`."""
    return "answer" in prompt.details


def answer_languages(prompt: Prompt) -> tuple[str, ...]:
    """The languages an answer may be in: the one asked for, else each that the request is written in."""
    if "answer_language" in prompt.details:
        return (str(prompt.details["answer_language"]),)
    return tuple(dict.fromkeys((prompt.language, *prompt.details.get("languages", ()))))


@dataclass(frozen=True)
class Verdict:
    """A judge's finding on one answer.

    Attributes:
        outcome: The outcome, or None if the answer could not be scored.
        language: BCP-47 code of the language of the answer, or None if it is not known.
        reason: Why; for an unscored answer, what failed.
        score: A graded score in 0..1 where the judge gives one (StrongREJECT style), else None.
    """

    outcome: Outcome | None
    language: str | None = None
    reason: str = ""
    score: float | None = None


class Judge(Protocol):
    """Scores answers; an answer it cannot score is unscored (`Verdict(None, reason=...)`), never guessed."""

    name: str

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Verdict]:
        """One verdict per answer, in order. Must not raise for a single bad answer or failed call."""
        ...


@dataclass(frozen=True)
class Sample:
    """One generation of one system, as a line of `samples/<system>.jsonl`.

    Attributes:
        split: Which held-out split or benchmark the prompt belongs to.
        prompt: What was asked.
        text: The answer, the condition not included.
        verdict: What the judge found.
        judge: The judge's name.
        score: The interpreter's probability that the prompt is harmful, or None for an unguarded system
            (and, once written, for a score that is not a number).
        flagged: The guard's decision, or None for an unguarded system.
        extra: What only some samples have: `failure` (why there is no answer), `reasoning` (what was thought before
            it), `reasoning_verdict` (the first judge's on that), `second` (another judge's verdict).
    """

    split: str
    prompt: Prompt
    text: str
    verdict: Verdict
    judge: str
    score: float | None = None
    flagged: bool | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The sample as one flat JSON object."""
        return {
            "split": self.split,
            **self.prompt.to_json(),
            "score": self.score if self.score is not None and math.isfinite(self.score) else None,
            "flagged": self.flagged,
            "text": self.text,
            "judge": self.judge,
            "outcome": self.verdict.outcome,
            "answer_language": self.verdict.language,
            "reason": self.verdict.reason,
            "judge_score": self.verdict.score,
            **({"extra": self.extra} if self.extra else {}),
        }

    @staticmethod
    def from_json(row: dict[str, Any]) -> "Sample":
        """A sample written by `to_json`.

        Raises:
            ValueError: A field is of another type.
            KeyError: A field is missing.
        """
        prompt_fields = ("query_id", "language", "messages", "harmful", "source", "category", "details")
        verdict = {"outcome": "outcome", "language": "answer_language", "reason": "reason", "score": "judge_score"}
        return _SAMPLE.validate_python(
            {
                "prompt": {name: row[name] for name in prompt_fields if name in row},
                "verdict": {field: row[name] for field, name in verdict.items()},
                "extra": row.get("extra", {}),
                **{name: row[name] for name in ("split", "text", "judge", "score", "flagged")},
            }
        )


_SAMPLE = TypeAdapter(Sample)
