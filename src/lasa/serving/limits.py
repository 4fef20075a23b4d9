"""What one API key may ask for: so many requests at the same time, and so many in a minute."""

import math
import time
from collections import Counter, defaultdict, deque

MINUTE = 60.0


class KeyLimits:
    """Counts the requests of every key.

    Args:
        in_flight: Requests of one key at the same time; 0: any number.
        per_minute: Requests of one key in any 60 seconds; 0: any number.
    """

    def __init__(self, in_flight: int, per_minute: int) -> None:
        self.in_flight, self.per_minute = in_flight, per_minute
        self._running = Counter[str]()
        self._begun: defaultdict[str, deque[float]] = defaultdict(deque)

    def enter(self, key: str) -> tuple[str, int] | None:
        """Count a request, to be followed by `leave`; or what its limit is, and after how many seconds to try again."""
        if self.in_flight and self._running[key] >= self.in_flight:
            return f"{self.in_flight} requests at the same time", 1
        if self.per_minute:
            now, begun = time.monotonic(), self._begun[key]
            while begun and begun[0] <= now - MINUTE:
                begun.popleft()
            if len(begun) >= self.per_minute:
                return f"{self.per_minute} requests a minute", math.ceil(begun[0] + MINUTE - now)
            begun.append(now)
        self._running[key] += 1
        return None

    def leave(self, key: str) -> None:
        """A request that was counted has ended."""
        self._running[key] -= 1
