"""The decisions on one batch of questions, from the hidden states of its own prefill."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lasa.conditioning.decision import Decision
from lasa.errors import GuardError
from lasa.guard.model import GuardedModel, Question
from lasa.interpreter.probe import Reading
from lasa.models.hidden_states import pool_tokens, token_range


class BatchReading:
    """The decisions on one batch of questions, read from its prefill.

    Args:
        guard: The guard.
        questions: In the order of the batch, which is padded on the left.
    """

    def __init__(self, guard: GuardedModel, questions: Sequence[Question]) -> None:
        self.guard, self.questions = guard, questions
        self.readings: list[Reading] | None = None
        self._of_prefills = guard.read_prefills(questions)
        self._decisions: list[Decision] | None = None

    def observe(self, layer: int, states: Tensor) -> None:
        """Score the prompts on `[rows, width, H]` hidden states of their prefill.

        Raises:
            GuardError: The states are not those of the whole batch.
        """
        rendered = [q.rendered for q in self.questions]
        width = max(len(one.token_ids) for one in rendered)
        if states.shape[:2] != (len(rendered), width):
            raise GuardError(
                f"The prefill had the shape {tuple(states.shape[:2])} instead of {(len(rendered), width)}; "
                "the prompt cannot be read, so it is not answered."
            )
        position = self.guard.interpreter.config.read_point.position
        ranges = []
        for one in rendered:
            start, end = token_range(one, position)
            padding = width - len(one.token_ids)
            ranges.append((start + padding, end + padding))
        with torch.inference_mode():
            self.readings = self.guard.interpreter.read(pool_tokens(states, ranges))

    def decisions(self) -> list[Decision]:
        """One decision per question.

        Raises:
            GuardError: The prompts were not read.
        """
        if self.readings is None:
            raise GuardError("The prompt was never read, so it is not answered. The model bypassed its own layers.")
        if self._decisions is None:
            self._decisions = [
                self.guard.decision(question, reading, of_prefill)
                for question, reading, of_prefill in zip(self.questions, self.readings, self._of_prefills, strict=True)
            ]
        return self._decisions
