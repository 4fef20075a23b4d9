"""The decisions on one batch of questions, from the hidden states of its own prefill."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lasa.conditioning.decision import Decision
from lasa.errors import GuardError
from lasa.guard.model import GuardedModel, Question
from lasa.interpreter.heads import Reading
from lasa.models.positions import TokenRanges, token_range
from lasa.models.rendering import Rendered


class PromptReadings:
    """What is read in one batch of prompts, read from its prefill, in one piece or in several.

    Args:
        guard: The guard.
        prompts: In the order of the batch, which is padded on the left.
    """

    def __init__(self, guard: GuardedModel, prompts: Sequence[Rendered]) -> None:
        self.guard, self.readings = guard, list[Reading]()
        self._width, self._seen = max(len(one.token_ids) for one in prompts), 0
        ranges = [token_range(one, guard.interpreter.config.read_point.position) for one in prompts]
        padding = [self._width - len(one.token_ids) for one in prompts]
        self._first = min(start + pad for (start, _), pad in zip(ranges, padding, strict=True))
        self._ranges = [
            (s + pad - self._first, e + pad - self._first) for (s, e), pad in zip(ranges, padding, strict=True)
        ]
        self._states: list[Tensor] = []

    def observe(self, layer: int, states: Tensor) -> None:
        """Take in the hidden states of the next columns, `[rows, columns, H]`; with the last ones come the readings.

        Raises:
            GuardError: The states are not those of the whole batch.
        """
        rows, columns = states.shape[:2]
        if rows != len(self._ranges) or self._seen + columns > self._width:
            raise GuardError(
                f"The prefill had {rows} rows and {self._seen + columns} columns instead of {len(self._ranges)} and "
                f"{self._width}; the prompt cannot be read, so it is not answered."
            )
        read = states[:, max(0, self._first - self._seen) :]
        self._seen += columns
        if read.shape[1]:
            self._states.append(read)
        if self._seen == self._width:
            whole = torch.cat(self._states, dim=1) if len(self._states) > 1 else self._states[0]
            with torch.inference_mode():
                self.readings = self.guard.interpreter.read(TokenRanges(self._ranges, whole.device).pool(whole))
            self._states = []


class BatchReading(PromptReadings):
    """The decisions on one batch of questions, read from its prefill.

    Args:
        guard: The guard.
        questions: In the order of the batch, which is padded on the left.
        of_prefills: Of the questions with the caller's prefill; None for those without.
    """

    def __init__(
        self, guard: GuardedModel, questions: Sequence[Question], of_prefills: Sequence[Reading | None]
    ) -> None:
        super().__init__(guard, [q.rendered for q in questions])
        self.questions, self._of_prefills = questions, of_prefills
        self._decisions: list[Decision] | None = None

    def decisions(self) -> list[Decision]:
        """One decision per question.

        Raises:
            GuardError: The prompts were not read.
        """
        if not self.readings:
            raise GuardError("The prompt was never read, so it is not answered. The model bypassed its own layers.")
        if self._decisions is None:
            self._decisions = [
                self.guard.decision(question, reading, of_prefill)
                for question, reading, of_prefill in zip(self.questions, self.readings, self._of_prefills, strict=True)
            ]
        return self._decisions
