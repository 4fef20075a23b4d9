"""Running batches by length: rows are padded to others of about their own length, never to a much longer one.

The rows of a batch are all as wide as its longest. So a row runs in the lane of the tokens that it may come to hold,
and what a lane may come to hold is known before a row is let in.
"""

from collections.abc import Iterator, Sequence

from lasa.guard.guard import Guard
from lasa.serving.batch import RunningBatch
from lasa.serving.served import ServedAnswer

SHORTEST, FACTOR = 2048, 4
"""Tokens of a row in the lane of the shortest, and how much longer the rows of the next lane may be."""


class Lanes:
    """The rows that are being answered.

    Args:
        guard: The guard and its model.
    """

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self._lanes: dict[int, RunningBatch] = {}

    @property
    def rows(self) -> list[ServedAnswer]:
        """All rows, of short and of long ones."""
        return [row for lane in list(self._lanes.values()) for row in lane.rows]

    @property
    def batches(self) -> list[RunningBatch]:
        """The batches that have rows, each to be stepped on its own."""
        return [lane for lane in self._lanes.values() if lane.rows]

    def joining(self, rows: Sequence[ServedAnswer], tokens: int) -> Iterator[None]:
        """Read new rows of one lane, and let those join that have something to say; see `RunningBatch.joining`.

        Raises:
            GuardError: They could not be read; the lanes are as before.
        """
        return self._lanes.setdefault(lane_of(rows[0]), RunningBatch(self.guard)).joining(rows, tokens)

    def drop(self, rows: Sequence[ServedAnswer]) -> None:
        """Cut rows out; what they held is freed."""
        for lane in self._lanes.values():
            lane.drop(rows)


def lane_of(row: ServedAnswer) -> int:
    """The longest that rows of its lane may become."""
    length = SHORTEST
    while length < row.tokens:
        length *= FACTOR
    return length


def tokens_held(rows: Sequence[ServedAnswer]) -> int:
    """The most tokens that the KV caches of these rows may come to hold, padding counted."""
    lanes: dict[int, list[int]] = {}
    for row in rows:
        lanes.setdefault(lane_of(row), []).append(row.tokens)
    return sum(len(lengths) * max(lengths) for lengths in lanes.values())
