"""WaitingLine: how much text may wait to be tokenized, and how much of it is at once."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from minisgl.text.errors import TextQueueFull

MAX_WAITING_CHARACTERS = 2**25  # some seconds of work; they are in memory as they are
# Each character takes up to 350 bytes while it is tokenized (where it is a token).
MAX_CHARACTERS_AT_ONCE = 2**22


class WaitingLine:
    """The texts that wait, and those that are being worked on."""

    def __init__(
        self, limit: int = MAX_WAITING_CHARACTERS, at_once: int = MAX_CHARACTERS_AT_ONCE
    ) -> None:
        self._limit = limit
        self._at_once = at_once
        self._waiting = 0  # characters, also of those that are being worked on
        self._working = 0  # characters that are being worked on
        self._turns: deque[tuple[Place, asyncio.Future[None]]] = deque()

    def place(self, size: int) -> Place:
        """A place for so many characters, to be left. TextQueueFull, unless the line is empty or
        there are none.
        """
        if size and self._waiting and self._waiting + size > self._limit:
            raise TextQueueFull(
                f"{self._waiting} characters of other texts wait (limit {self._limit})"
            )
        return Place(self, size)

    def _next_turns(self) -> None:
        """Lets those begin that come next and that there is room for: anything, when nothing is
        being worked on.
        """
        while self._turns:
            place, turn = self._turns[0]
            if not turn.cancelled():
                if self._working and self._working + place.size > self._at_once:
                    return
                place.begin()
                turn.set_result(None)
            self._turns.popleft()


class Place:
    """A text's place in the line: left with leave(), or at the end of a `with`."""

    def __init__(self, line: WaitingLine, size: int) -> None:
        self._line = line
        self.size = size  # characters; 0 after leave()
        self._begun = 0  # of them, those that are counted as being worked on
        line._waiting += size

    async def turn(self) -> None:
        """Waits until the text may be worked on: in the order of the calls, and at once where it
        has no characters.
        """
        if not self.size:
            return
        turn = asyncio.get_running_loop().create_future()
        self._line._turns.append((self, turn))
        self._line._next_turns()
        await turn

    def begin(self) -> None:
        """Counts the text as being worked on."""
        self._begun = self.size
        self._line._working += self.size

    def leave(self) -> None:
        """Makes room for others. Idempotent."""
        self._line._waiting -= self.size
        self._line._working -= self._begun
        self.size = self._begun = 0
        self._line._next_turns()

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()
