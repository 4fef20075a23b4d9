"""Stage 4: guarded generation in one pass. Read while the prompt is prefilled, decide, condition, go on.

The hidden state of the read point is observed inside the model's own prefill; flagged rows then begin with the
condition's tokens, on the same KV cache, in the same batch. A caller's prefill comes after the condition.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lasa.conditioning import Decision, Policy, condition_ids, decide
from lasa.errors import GuardError
from lasa.generation import Generated, GenerationSettings, RowPlan, generate
from lasa.hidden_states import check_readable, pool_tokens, token_range
from lasa.interpreter import SafetySemanticInterpreter
from lasa.layers import observe_layers
from lasa.prompts import Message
from lasa.refusals import refusal_message
from lasa.rendering import Rendered, check_tokenizer, render


@dataclass(frozen=True)
class Guarded:
    """A guarded answer.

    Attributes:
        answer: What the caller gets; never contains the condition.
        decision: Why.
    """

    answer: Generated
    decision: Decision


class Guard:
    """A model that is read while it answers, and conditioned on what was read.

    Args:
        model: The model to serve: the base, or one aligned on top of it.
        tokenizer: Its tokenizer.
        interpreter: The interpreter of that base.
        policy: What to do with each band of scores.

    Raises:
        GuardError: The model's layers cannot be observed.
        ArtifactError: The interpreter does not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        interpreter: SafetySemanticInterpreter,
        policy: Policy | None = None,
    ) -> None:
        check_tokenizer(tokenizer)
        interpreter.check_fits(model, tokenizer, fingerprint=False)
        check_readable(model)
        self.model, self.tokenizer, self.interpreter = model.eval(), tokenizer, interpreter.eval()
        self.policy = policy or Policy()
        self.condition = condition_ids(tokenizer, self.policy.condition)

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        settings: GenerationSettings | None = None,
        *,
        languages: Sequence[str | None] | None = None,
        prefills: Sequence[str] | None = None,
        streamer: Any = None,
    ) -> list[Guarded]:
        """Answer conversations, each on its own decision, in one batch.

        Args:
            conversations: Each ends in a user's or tool's message.
            settings: Length and sampling.
            languages: The users' languages where known, for thresholds and refusals in that language.
            prefills: Text each assistant turn must begin with; it never displaces the condition.
            streamer: A transformers streamer; it also sees condition and prefill tokens.

        Raises:
            GuardError: The prompt was not read; nothing is answered then.
        """
        settings = settings or GenerationSettings()
        rendered = [render(self.tokenizer, messages) for messages in conversations]
        languages = languages or [None] * len(rendered)
        begins = [self._ids(text) for text in prefills or [""] * len(rendered)]
        reading = _Reading(self, rendered)

        def plan() -> list[tuple[list[int], int]]:
            decisions = reading.decisions(languages)
            rows = []
            for decision, begin in zip(decisions, begins, strict=True):
                condition = self.condition if decision.action == "condition" else []
                limit = 0 if decision.action == "refuse" else settings.max_new_tokens
                rows.append(([*condition, *begin], limit))
            return rows

        with observe_layers(self.model, [self.interpreter.config.read_point.layer], reading.observe):
            answers = generate(
                self.model,
                self.tokenizer,
                [one.token_ids for one in rendered],
                settings,
                RowPlan(plan),
                longest_forced=len(self.condition) + max(map(len, begins)),
                streamer=streamer,
            )
        decisions = reading.decisions(languages)
        return [
            Guarded(self._refusal(language) if decision.action == "refuse" else answer, decision)
            for answer, decision, language in zip(answers, decisions, languages, strict=True)
        ]

    def decide(
        self, conversations: Sequence[Sequence[Message]], languages: Sequence[str | None] | None = None
    ) -> list[Decision]:
        """The decisions alone, without an answer (detector use)."""
        from lasa.hidden_states import read_hidden_states
        from lasa.prompts import Prompt

        prompts = [Prompt(str(row), "en", tuple(messages)) for row, messages in enumerate(conversations)]
        point = self.interpreter.config.read_point
        states = read_hidden_states(self.model, self.tokenizer, prompts, [point.layer], point.position)[:, 0]
        scores = self.interpreter.probability(states).tolist()
        return [
            decide(self.interpreter.config, self.policy, score, language)
            for score, language in zip(scores, languages or [None] * len(prompts), strict=True)
        ]

    def _ids(self, text: str) -> list[int]:
        from lasa.rendering import defuse

        ids: list[int] = self.tokenizer(defuse(self.tokenizer, text), add_special_tokens=False)["input_ids"]
        return ids

    def _refusal(self, language: str | None) -> Generated:
        text = refusal_message(language)
        return Generated(self._ids(text), text, "stop")


class _Reading:
    """The scores of one batch, taken from its prefill."""

    def __init__(self, guard: Guard, rendered: Sequence[Rendered]) -> None:
        self.guard, self.rendered = guard, rendered
        self.scores: list[float] | None = None

    def observe(self, layer: int, states: Tensor) -> None:
        if self.scores is not None:
            return
        width = max(len(one.token_ids) for one in self.rendered)
        if states.shape[:2] != (len(self.rendered), width):
            raise GuardError(
                f"The prefill had the shape {tuple(states.shape[:2])} instead of {(len(self.rendered), width)}; "
                "the prompt cannot be read, so it is not answered."
            )
        position = self.guard.interpreter.config.read_point.position
        ranges = []
        for one in self.rendered:
            start, end = token_range(one, position)
            padding = width - len(one.token_ids)
            ranges.append((start + padding, end + padding))
        with torch.inference_mode():
            pooled = pool_tokens(states, ranges)
            self.scores = self.guard.interpreter.probability(pooled).tolist()

    def decisions(self, languages: Sequence[str | None]) -> list[Decision]:
        if self.scores is None:
            raise GuardError("The prompt was never read, so it is not answered. The model bypassed its own layers.")
        scores = [score if math.isfinite(score) else math.nan for score in self.scores]
        guard = self.guard
        return [
            decide(guard.interpreter.config, guard.policy, score, language)
            for score, language in zip(scores, languages, strict=True)
        ]
