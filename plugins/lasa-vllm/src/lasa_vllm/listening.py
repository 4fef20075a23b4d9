"""Harm in an answer while it is written, by the interpreter's head for answers, in the same pass.

A stop is said in tokens, which is all that reaches the scheduler from whatever process samples: the *mark*, a special
token that no answer has. Nothing but this can write it. As `lasa.guard.listening` has it, the mean logit of the newest
tokens is an answer's score, and one that ends before its first window is judged as a whole.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lasa.interpreter.heads import AnswerHead

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams


@dataclass(frozen=True)
class Listening:
    """How answers are read again.

    Attributes:
        head: Window and threshold.
        mark: Id of the token that says that an answer is stopped.
    """

    head: AnswerHead
    mark: int


def answer_limit(max_tokens: int | None, prompt_length: int, context: int) -> int:
    """The longest answer whose last token is still read: one token more has to fit into the model's context."""
    room = context - prompt_length - 1
    return room if max_tokens is None else min(max_tokens, room)


class AnswerStops:
    """The newest scores of the answers that are being written, and what they make of the next tokens.

    Args:
        listening: How.
        slots: Answers at most.
        device: Of the logits.
    """

    def __init__(self, listening: Listening, slots: int, device: torch.device) -> None:
        self.window, self.threshold, self.mark = listening.head.window, listening.head.threshold, listening.mark
        self.recent = torch.zeros(slots, self.window, dtype=torch.float64, device=device)
        self.spared = torch.zeros(slots, dtype=torch.bool, device=device)
        self.ends = torch.full((slots, 1), self.mark, device=device)

    def enter(self, slot: int, params: "SamplingParams") -> None:
        """A request takes a slot: nothing was heard of it, and nothing spares it."""
        self.recent[slot], self.spared[slot] = 0.0, False
        ends = {*(params.stop_token_ids or ()), params.eos_token_id} - {None}
        missing = len(ends) - self.ends.shape[1]
        if missing > 0:
            self.ends = torch.cat([self.ends, self.ends[:, :1].expand(-1, missing)], dim=1)
        self.ends[slot] = self.mark
        self.ends[slot, : len(ends)] = torch.tensor(sorted(ends), dtype=torch.int64, device=self.ends.device)

    def hear(self, slots: Tensor, written: Tensor, heard: Tensor, logits: Tensor) -> Tensor:
        """Take in what was read at the newest tokens.

        Args:
            slots: `[k]` int64.
            written: Tokens of each answer, `[k]` int64, at least 1. A token that is read anew (a request that came
                back, in the midst of its prompt) takes its own place.
            heard: How many of them were read since the request came, `[k]` int64.
            logits: Of the head, at the last of them, `[k]`.

        Returns:
            Whether each answer's score is at or above the threshold, or no number, `[k]` bool.
        """
        self.recent[slots, written % self.window] = logits.double()
        mean = self.recent[slots].sum(-1) / heard.clamp(max=self.window)
        return ~(torch.sigmoid(mean) < self.threshold)

    def mark_ends(self, logits: Tensor, rows: Tensor, slots: Tensor, over: Tensor) -> None:
        """Let nothing write the mark, but an answer that is over its threshold when it would end, in place.

        Args:
            logits: `[batch, vocabulary]`.
            rows: `[k]` int64.
            slots: Theirs, `[k]` int64.
            over: Which of them have a score that is not to be, `[k]` bool.
        """
        logits[rows, self.mark] = -torch.inf
        ends = self.ends[slots]
        values = logits[rows[:, None], ends]
        logits[rows[:, None], ends] = values.masked_fill(over[:, None], -torch.inf)
        logits[rows, self.mark] = values.amax(-1).masked_fill(~over, -torch.inf)
