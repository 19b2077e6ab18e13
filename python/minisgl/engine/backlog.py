"""What waits for its first token, how fast that is served, and so how long others would wait."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

SERVED = 64  # prompts that are looked at
LONGEST_S = 60
UNKNOWN_S = 5  # where none has been served yet


class Backlog:
    """The prompt tokens of requests that have got nothing yet, and the times at which others got
    their first token.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self.tokens = 0
        self._clock = clock
        self._served: deque[tuple[float, int]] = deque(maxlen=SERVED)

    def add(self, tokens: int) -> None:
        """A request with so many prompt tokens waits from now on."""
        self.tokens += tokens

    def serve(self, tokens: int) -> None:
        """It has its first token."""
        self.tokens -= tokens
        self._served.append((self._clock(), tokens))

    def drop(self, tokens: int) -> None:
        """It ended with nothing."""
        self.tokens -= tokens

    def seconds(self) -> int:
        """How long it takes to serve what waits now, 1 to LONGEST_S, at the rate of late."""
        if len(self._served) < 2:
            return UNKNOWN_S
        elapsed = max(self._clock() - self._served[0][0], 1e-3)
        per_second = sum(tokens for _, tokens in self._served) / elapsed
        return min(max(1, math.ceil(self.tokens / per_second)), LONGEST_S)
