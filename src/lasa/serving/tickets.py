"""What passes between a request and the scheduler: the ticket that is handed in, and the events that come back."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lasa.conditioning.decision import Decision
from lasa.errors import LasaError
from lasa.guard.row import GuardedAnswer
from lasa.guard.turns import TurnDecision
from lasa.serving.served import ServedAnswer, TokenLogprob


@dataclass(frozen=True)
class Decided:
    """The prompt of a row was read; so was every earlier turn where that was asked for."""

    row: int
    decision: Decision
    turns: Sequence[TurnDecision] = ()


@dataclass(frozen=True)
class Written:
    """More of an answer, safe to show."""

    row: int
    text: str
    logprobs: list[TokenLogprob]


@dataclass(frozen=True)
class Ended:
    """A row is complete; `text` is what `Written` has not given out yet."""

    row: int
    text: str
    logprobs: list[TokenLogprob]
    outcome: GuardedAnswer


@dataclass(frozen=True)
class Failed:
    """The request cannot be answered, or the guard could not do its work; nothing more follows."""

    error: LasaError


Event = Decided | Written | Ended | Failed


@dataclass
class Ticket:
    """One request: rows that are answered together or apart, and where its events go.

    Attributes:
        rows: The rows.
        deliver: Called in the worker thread with each event; must not block or raise.
        deadline: When its rows are dropped, by `time.monotonic`.
        by_turn: Also read the conversation at each of its turns.
        streamed: Whether text is handed out while it is written.
        turns: The decisions at its turns, once they are read.
        cancelled: Set by `Scheduler.cancel`.
    """

    rows: Sequence[ServedAnswer]
    deliver: Callable[[Event], None]
    deadline: float = math.inf
    by_turn: bool = False
    streamed: bool = True
    turns: Sequence[TurnDecision] = ()
    cancelled: bool = False
    _given: list[int] = field(default_factory=list)
    _logprobs_given: list[int] = field(default_factory=list)
    _rests_until: list[float] = field(default_factory=list)
    submitted: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._given = [0] * len(self.rows)
        self._logprobs_given = [0] * len(self.rows)
        self._rests_until = [0.0] * len(self.rows)

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.cancelled or time.monotonic() > self.deadline

    def hand_out(self, row: ServedAnswer, rest: float = 0.0) -> None:
        """Deliver what is new in a row, and then nothing for so many seconds, but for its end."""
        index = self.rows.index(row)
        if row.ended:
            outcome = row.outcome()
            shown = self._given[index]
            if outcome.stopped or outcome.decision.replaced:
                self.deliver(Ended(index, ("\n\n" if shown else "") + outcome.answer.text, [], outcome))
                return
            logprobs = self._new_logprobs(index, row, len(outcome.answer.text))
            self.deliver(Ended(index, outcome.answer.text[shown:], logprobs, outcome))
            return
        if not self.streamed or time.monotonic() < self._rests_until[index]:
            return
        released = row.released
        if len(released) > self._given[index]:
            self._rests_until[index] = time.monotonic() + rest
            text = released[self._given[index] :]
            self._given[index] = len(released)
            self.deliver(Written(index, text, self._new_logprobs(index, row, len(released))))

    def _new_logprobs(self, index: int, row: ServedAnswer, length: int) -> list[TokenLogprob]:
        found = [one for one in row.logprobs[self._logprobs_given[index] :] if one.end <= length]
        self._logprobs_given[index] += len(found)
        return found
