"""What is evaluated: anything that answers prompts. Here, a local model, plain or behind the guard."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from lasa.data.prompts import Prompt
from lasa.errors import GuardError
from lasa.evaluation.reasoning import UNFINISHED, Reasoned, special_marks, split_tokens
from lasa.guard.guard import Guard
from lasa.models.generation import (
    FinishReason,
    Generated,
    GenerationSettings,
    GrowingAnswer,
    generate,
    terminators,
)
from lasa.models.layers import context_length
from lasa.models.memory import in_halves, token_budget
from lasa.models.rendering import defuse, render
from lasa.models.thinking import thinking_tail


@dataclass(frozen=True)
class Answer:
    """One answer of the system under evaluation.

    Attributes:
        text: The answer; a caller's prefill is part of it, the condition is not.
        score: The interpreter's probability that the prompt is harmful, or None for an unguarded system.
        flagged: The guard's decision, or None for an unguarded system.
        failure: Why there is no answer, where there is none; such a prompt is unscored.
        reasoning: What the model thought before it answered; it is no part of the text.
        finish_reason: Why the answer ended, where that is known.
    """

    text: str
    score: float | None = None
    flagged: bool | None = None
    failure: str = ""
    reasoning: str = ""
    finish_reason: FinishReason | None = None


class Answerer(Protocol):
    """Anything that answers prompts."""

    @property
    def budget(self) -> int:
        """Tokens of prompts and answers that a batch may hold, where the user says nothing."""
        ...

    def tokens(self, prompt: Prompt) -> int:
        """Tokens that a prompt and its answer hold in memory at most."""
        ...

    def __call__(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer per prompt, in order; the prompts share a batch."""
        ...


class _Asked(NamedTuple):
    """A prompt, its rendered tokens, and those that its answer must begin with."""

    prompt: Prompt
    token_ids: list[int]
    prefill: list[int]


class LocalModel:
    """A local model as the system under evaluation.

    `details["prefill"]` of a prompt is text that the answer must begin with. What a model thinks before it answers is
    no part of the answer; where it was still thinking at the length limit, there is none.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        guard: The guard before it, or None for an unguarded system.
        settings: Length and sampling.
    """

    def __init__(self, model: Any, tokenizer: Any, guard: Guard | None, settings: GenerationSettings) -> None:
        self.model, self.tokenizer, self.guard, self.settings = model, tokenizer, guard, settings
        self.context = context_length(model)
        self._opens_block, self._marks = bool(thinking_tail(tokenizer)), special_marks(tokenizer)

    @cached_property
    def budget(self) -> int:
        """As many tokens as the cache of this model has room for on its device."""
        return token_budget(self.model)

    def tokens(self, prompt: Prompt) -> int:
        """The rendered prompt, what is forced after it, and the longest answer."""
        return self._before_answer(self._asked(prompt)) + self.settings.max_new_tokens

    def __call__(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer per prompt, in one batch (two, where memory runs out); one beyond the model's context has none."""
        asked = [self._asked(prompt) for prompt in prompts]
        before = [self._before_answer(one) for one in asked]
        rows = [row for row, used in enumerate(before) if self.context is None or used < self.context]
        answers = [Answer("", failure=f"{used} tokens, the model's context is {self.context}") for used in before]
        given = in_halves([asked[row] for row in rows], self._plain if self.guard is None else self._guarded)
        for row, answer in zip(rows, given, strict=True):
            answers[row] = answer
        return answers

    def harm(self, prompts: Sequence[Prompt]) -> list[float]:
        """The interpreter's probability that each prompt is harmful, without an answer.

        Raises:
            GuardError: There is no guard.
        """
        if self.guard is None:
            raise GuardError("Only a guarded system has an interpreter to search against. Give --interpreter DIR.")
        asked, languages = [prompt.messages for prompt in prompts], [prompt.language or None for prompt in prompts]
        return [one.score for one in self.guard.decide(asked, languages, [_prefill(prompt) for prompt in prompts])]

    def _guarded(self, asked: Sequence[_Asked]) -> list[Answer]:
        assert self.guard is not None
        prompts = [one.prompt for one in asked]
        guarded = self.guard.generate(
            [prompt.messages for prompt in prompts],
            self.settings,
            languages=[prompt.language or None for prompt in prompts],
            prefills=[_prefill(prompt) for prompt in prompts],
        )
        answers = []
        for prompt, one in zip(prompts, guarded, strict=True):
            decision, given = one.decision, one.answer
            if decision.replaced or one.stopped is not None:
                reason: FinishReason = "content_filter"
                answers.append(Answer(given.text, decision.score, decision.flagged, finish_reason=reason))
            else:
                answers.append(self._answer(prompt, given, decision.score, decision.flagged))
        return answers

    def _plain(self, asked: Sequence[_Asked]) -> list[Answer]:
        ids, forced = [one.token_ids for one in asked], [one.prefill for one in asked]
        ends, stop, longest = terminators(self.model, self.tokenizer), self.settings.stop, self.settings.max_new_tokens

        def open_rows() -> list[GrowingAnswer]:
            room = [longest if self.context is None else self.context - self._before_answer(one) for one in asked]
            limits = [min(longest, left) for left in room]
            return [
                GrowingAnswer(self.tokenizer, ends, *row) for row in zip(limits, [stop] * len(ids), forced, strict=True)
            ]

        most = max(map(len, forced), default=0)
        rows = generate(self.model, self.tokenizer, ids, self.settings, open_rows, longest_forced=most)
        return [self._answer(one.prompt, row) for one, row in zip(asked, rows, strict=True)]

    def _asked(self, prompt: Prompt) -> _Asked:
        return _Asked(prompt, render(self.tokenizer, prompt.messages).token_ids, self._prefill_ids(prompt))

    def _before_answer(self, asked: _Asked) -> int:
        """Tokens before the answer, at most."""
        forced = self.guard.longest_forced(asked.prefill) if self.guard else len(asked.prefill)
        return len(asked.token_ids) + forced

    def _prefill_ids(self, prompt: Prompt) -> list[int]:
        text = defuse(self.tokenizer, _prefill(prompt))
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _answer(
        self, prompt: Prompt, one: Generated, score: float | None = None, flagged: bool | None = None
    ) -> Answer:
        """What was generated as an answer, without the thoughts and with the caller's prefill."""
        before = self._prefill_ids(prompt)
        found = split_tokens(
            self.tokenizer, self._marks, one.token_ids, one.text, opened=self._opens_block and not before
        )
        failure = UNFINISHED if found.answer is None else ""
        text = found.answer or ""
        if before and found == Reasoned("", one.text):
            text = str(self.tokenizer.decode([*before, *one.token_ids], skip_special_tokens=True))
        elif before and not failure:
            text = _prefill(prompt) + text
        return Answer(text, score, flagged, failure, found.reasoning, one.finish_reason)


def _prefill(prompt: Prompt) -> str:
    return str(prompt.details.get("prefill", ""))
