"""One answer that is being served: its row, how its next token is drawn, and what of it may be shown already."""

import random
from dataclasses import dataclass, replace

from lasa.errors import GuardError
from lasa.guard.model import Question
from lasa.guard.row import GuardedAnswer, GuardedRow
from lasa.models.detokenization import safe_length
from lasa.models.generation import GenerationSettings
from lasa.serving.sampling import Alternatives


@dataclass(frozen=True)
class TokenLogprob:
    """The log probability of one token of an answer, before temperature.

    Attributes:
        token: Its id.
        logprob: Its log probability.
        top: Likeliest tokens and theirs, best first.
        end: Length of the answer's text with this token.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]
    end: int


class ServedAnswer:
    """One answer of the batch; one that is read again stays until its last token was read.

    Args:
        question: What is asked.
        settings: Length, sampling (its own generator where there is a seed) and stop texts.
        top_logprobs: Record log probabilities, with so many alternatives; None records none.
    """

    def __init__(self, question: Question, settings: GenerationSettings, top_logprobs: int | None = None) -> None:
        self.question, self.settings, self.top_logprobs = question, settings, top_logprobs
        self.guarded: GuardedRow | None = None
        self.logprobs: list[TokenLogprob] = []
        self.newest = 0
        self._cleared = 0
        self._lengths: list[int] = []  # of the text with each token, where a head listens
        self._random = random.Random()
        self._number: float | None = None

    def begin(self, guarded: GuardedRow) -> None:
        """Start the answer, anew where a beginning failed."""
        self.guarded, self.logprobs, self._cleared, self._number = guarded, [], 0, None
        self._lengths = []
        seed = self.settings.seed
        self._random.seed(None if seed is None else str(seed))  # of an integer it would take the absolute value

    @property
    def tokens(self) -> int:
        """The most tokens that its KV cache may come to hold."""
        return len(self.question.rendered.token_ids) + len(self.question.prefill_ids) + self.settings.max_new_tokens

    @property
    def running(self) -> GuardedRow:
        """The row once its prompt was read.

        Raises:
            GuardError: It was not read.
        """
        if self.guarded is None:
            raise GuardError("The prompt was never read, so it is not answered.")
        return self.guarded

    @property
    def ended(self) -> bool:
        """Whether the answer is complete."""
        return self.running.state.over

    @property
    def released(self) -> str:
        """The part of the answer that may be shown while it is written.

        Held back is what may become a stop text, and what has not been read again where answers are.
        """
        row = self.running
        if row.decision.replaced or row.stopped:
            return row.state.text[: self._cleared]
        if self.ended:
            return row.state.text
        safe = safe_length(row.state.text, self.settings.stop)
        return row.state.text[: min(safe, self._cleared) if row.watched else safe]

    def outcome(self) -> GuardedAnswer:
        """The answer and why."""
        return self.running.outcome()

    @property
    def draws(self) -> GenerationSettings:
        """How its next token is drawn; the likeliest is taken where that does not matter."""
        state = self.running.state
        fixed = state.finish_reason is not None or state.next_forced is not None
        return replace(self.settings, temperature=0.0) if fixed else self.settings

    @property
    def number(self) -> float:
        """The random number of its next token, in `[0, 1)`, the same until that is taken."""
        if self._number is None:
            self._number = self._random.getrandbits(24) / 2**24 if self.draws.temperature > 0 else 0.0
        return self._number

    def take(self, token: int, found: Alternatives | None) -> None:
        """Go on with the forced token, or with the one that was drawn."""
        state, self._number = self.running.state, None
        if not state.finish_reason:  # else the pass was over its last token, for that to be read
            forced = state.next_forced
            self.newest = token if forced is None else forced
        accepted = state.accept(self.newest)
        if accepted and self._window:
            self._lengths.append(len(state.text))
        if accepted and found is not None:
            self.logprobs.append(TokenLogprob(self.newest, *found, len(state.text)))

    @property
    def _window(self) -> int:
        """Tokens over which the head for answers is smoothed; 0 without one."""
        head = self.running.guard.interpreter.config.answers
        return head.window if head else 0

    def clear(self) -> None:
        """All that is written so far has been read; the tokens whose score is not complete yet stay back."""
        if self._window:
            seen = len(self._lengths) - self._window
            self._cleared = self._lengths[seen - 1] if seen > 0 else 0
        else:
            self._cleared = len(self.running.state.text)
