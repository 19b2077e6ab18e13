"""How fast requests end, and so how long others wait."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

ENDS = 64  # that are looked at
LONGEST_S = 60
UNKNOWN_S = 5  # where none has ended yet


class Pace:
    """The times of the latest ends. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=ENDS)

    def ended(self) -> None:
        """A request has ended."""
        self._ends.append(self._clock())

    def seconds_for(self, count: int) -> int:
        """How long so many requests take to end, 1 to LONGEST_S."""
        if len(self._ends) < 2:
            return UNKNOWN_S
        per_second = len(self._ends) / max(self._clock() - self._ends[0], 1e-3)
        return min(max(1, math.ceil(count / per_second)), LONGEST_S)
