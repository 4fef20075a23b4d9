"""Who comes in next: what fits beside the rows that run, is read in one pass, and belongs to one lane."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from lasa.serving.lanes import lane_of, tokens_held
from lasa.serving.served import ServedAnswer
from lasa.serving.tickets import Ticket

Waiting = tuple[Ticket, ServedAnswer]


@dataclass(frozen=True)
class Admission:
    """What there is room for.

    Attributes:
        max_rows: Rows that are answered at the same time.
        max_tokens: Tokens that the KV caches of running rows may come to hold, padding counted.
        pass_tokens: Tokens of one pass over prompts, padding counted.
    """

    max_rows: int
    max_tokens: int
    pass_tokens: int

    def take(self, waiting: deque[Waiting], running: Sequence[ServedAnswer]) -> list[Waiting]:
        """Take from the front of a queue what comes in; the answers to one question together, so that it is read once.

        Where nothing runs, something always comes in: of what is too large for this server, as much as fits, or a row.
        """
        admitted: list[Waiting] = []
        width, questions, rows = 0, 0, list(running)
        while waiting:
            ticket, row = waiting[0]
            alike = _answers_to_one_question(waiting)
            if not ticket.over:
                if not rows:
                    alike = self._as_far_as_it_fits(alike)
                together = [*rows, *(one for _, one in alike)]
                if rows and (len(together) > self.max_rows or tokens_held(together) > self.max_tokens):
                    break
                width, questions = max(width, len(row.question.rendered.token_ids)), questions + 1
                if admitted and (width * questions > self.pass_tokens or lane_of(row) != lane_of(admitted[0][1])):
                    break
                admitted += alike
                rows = together
            for _ in alike:
                waiting.popleft()
        return admitted

    def _as_far_as_it_fits(self, alike: list[Waiting]) -> list[Waiting]:
        alike = alike[: self.max_rows]
        while len(alike) > 1 and tokens_held([row for _, row in alike]) > self.max_tokens:
            alike.pop()
        return alike


def _answers_to_one_question(waiting: deque[Waiting]) -> list[Waiting]:
    question = waiting[0][1].question
    return list(takewhile(lambda one: one[1].question is question, waiting))
