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

    def allows(self, share: int, amount: int, bound: int | None) -> bool:
        """Whether the share may have so much more; None: nothing is bounded."""
        total = self.total + amount
        if bound is None or total <= bound:
            return True
        shares = len(self._held.keys() | {share})
        if shares == 1 or total > bound + max(1, bound // self.RESERVE):
            return False
        return self._held.get(share, 0) + amount <= bound // shares


class WaitingPrompt:
    """The prompt of one request, or of several choices that compute it once, until the first of
    them has a token.
    """

    def __init__(self, tokens: int, share: int) -> None:
        self.tokens = tokens  # 0 once it doesn't wait any more
        self.share = share
        self.requests = 1


class Backlog:
    """The prompt tokens of requests that have got nothing yet, and the times at which others got
    their first token.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self.waiting = SharedBound()  # prompt tokens
        self._clock = clock
        self._since = 0.0  # where something waits: the clock's time when that began
        self._worked = 0.0  # seconds before that in which something waited
        self._served: deque[tuple[float, int]] = deque(maxlen=SERVED)

    @property
    def tokens(self) -> int:
        """Those that wait."""
        return self.waiting.total

    def add(self, tokens: int, share: int = 0) -> WaitingPrompt:
        """A request of the share with so many prompt tokens waits from now on."""
        if self.tokens == 0:
            self._since = self._clock()
        self.waiting.add(share, tokens)
        return WaitingPrompt(tokens, share)

    def serve(self, prompt: WaitingPrompt) -> None:
        """One of its requests has its first token."""
        if prompt.tokens:
            tokens = prompt.tokens
            self._end(prompt)
            self._served.append((self._seconds_worked(), tokens))

    def drop(self, prompt: WaitingPrompt) -> None:
        """One of its requests ended."""
        prompt.requests -= 1
        if prompt.requests == 0:
            self._end(prompt)

    def seconds(self) -> int:
        """How long it takes to serve what waits now, 1 to LONGEST_S, at the rate of late."""
        if len(self._served) < 2:
            return UNKNOWN_S
        elapsed = max(self._seconds_worked() - self._served[0][0], 1e-3)
        per_second = sum(tokens for _, tokens in self._served) / elapsed
        return min(max(1, math.ceil(self.tokens / per_second)), LONGEST_S)

    def _end(self, prompt: WaitingPrompt) -> None:
        if self.tokens == prompt.tokens:
            self._worked = self._seconds_worked()
        self.waiting.add(prompt.share, -prompt.tokens)
        prompt.tokens = 0

    def _seconds_worked(self) -> float:
        """Time so far in which something waited: an idle engine serves nothing, and isn't slow."""
        return self._worked + (self._clock() - self._since if self.tokens else 0.0)
