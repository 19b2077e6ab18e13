"""What is in the queue: how much of it is whose, how fast what waits for its first token is served,
and so how long others would wait.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

SERVED = 64  # prompts that are looked at
LONGEST_S = 60
UNKNOWN_S = 5  # where none has been served yet


class SharedBound:
    """How much each share (an API key) has of something that is bounded. Where it is full, a share
    that has less than its part, the bound over the number of shares that have any, gets more of a
    reserve, a quarter of the bound: one that fills the queue keeps no other out. A share alone has
    the bound and no more.
    """

    RESERVE = 4

    def __init__(self) -> None:
        self.total = 0
        self._held: dict[int, int] = {}  # by share; none is 0

    def add(self, share: int, amount: int) -> None:
        """The share has so much more, or less."""
        self.total += amount
        self._held[share] = self._held.get(share, 0) + amount
        if not self._held[share]:
            del self._held[share]

    def allows(self, share: int, amount: int, bound: int) -> bool:
        """Whether the share may have so much more."""
        total = self.total + amount
        if total <= bound:
            return True
        shares = len(self._held.keys() | {share})
        if shares == 1 or total > bound + max(1, bound // self.RESERVE):
            return False
        return self._held.get(share, 0) + amount <= bound // shares


class Backlog:
    """The prompt tokens of requests that have got nothing yet, and the times at which others got
    their first token.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self.tokens = 0
        self._clock = clock
        self._since = 0.0  # where something waits: the clock's time when that began
        self._worked = 0.0  # seconds before that in which something waited
        self._served: deque[tuple[float, int]] = deque(maxlen=SERVED)

    def add(self, tokens: int) -> None:
        """A request with so many prompt tokens waits from now on."""
        if self.tokens == 0:
            self._since = self._clock()
        self.tokens += tokens

    def serve(self, tokens: int) -> None:
        """It has its first token."""
        self.drop(tokens)
        self._served.append((self._seconds_worked(), tokens))

    def drop(self, tokens: int) -> None:
        """It ended with nothing."""
        if self.tokens == tokens:
            self._worked = self._seconds_worked()
        self.tokens -= tokens

    def seconds(self) -> int:
        """How long it takes to serve what waits now, 1 to LONGEST_S, at the rate of late."""
        if len(self._served) < 2:
            return UNKNOWN_S
        elapsed = max(self._seconds_worked() - self._served[0][0], 1e-3)
        per_second = sum(tokens for _, tokens in self._served) / elapsed
        return min(max(1, math.ceil(self.tokens / per_second)), LONGEST_S)

    def _seconds_worked(self) -> float:
        """Time so far in which something waited: an idle engine serves nothing, and isn't slow."""
        return self._worked + (self._clock() - self._since if self.tokens else 0.0)
