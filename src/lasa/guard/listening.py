"""Harm in an answer while it is written: the score of its newest tokens, by the interpreter's head for answers."""

import math
from collections import deque

from lasa.interpreter.heads import AnswerHead


class AnswerListener:
    """The smoothed score of one answer, token by token, and the highest so far.

    Args:
        head: How the head for answers is used.
    """

    def __init__(self, head: AnswerHead) -> None:
        self.heard = 0
        self._recent = deque[float](maxlen=head.window)
        self._highest = 0.0

    def hear(self, logit: float) -> None:
        """Take in the logit at the next token."""
        self._recent.append(logit)
        self.heard += 1
        if self.heard >= (self._recent.maxlen or 1):
            self._note()

    def score(self, *, ended: bool) -> float:
        """The highest score of any window so far; of an answer that ended before its first, that of all its tokens.

        A logit that is not a number makes the score none, which stops the answer.
        """
        if ended and 0 < self.heard < (self._recent.maxlen or 1):
            self._note()
        return self._highest

    def _note(self) -> None:
        mean = sum(self._recent) / len(self._recent)
        score = 1 / (1 + math.exp(-max(-700.0, mean))) if math.isfinite(mean) else math.nan
        if not math.isnan(self._highest) and not score <= self._highest:
            self._highest = score
