"""WaitingLine: how much text may wait to be tokenized."""

from __future__ import annotations

from types import TracebackType

from minisgl.text.errors import TextQueueFull

MAX_WAITING_CHARACTERS = 2**25  # some seconds of work, a few hundred MB


class WaitingLine:
    """The texts that wait, and those that are being worked on."""

    def __init__(self, limit: int = MAX_WAITING_CHARACTERS) -> None:
        self._limit = limit
        self._waiting = 0  # characters

    def place(self, size: int) -> Place:
        """A place for so many characters, to be left. TextQueueFull, unless the line is empty or
        there are none.
        """
        if size and self._waiting and self._waiting + size > self._limit:
            raise TextQueueFull(
                f"{self._waiting} characters of other texts wait (limit {self._limit})"
            )
        return Place(self, size)


class Place:
    """A text's place in the line: left with leave(), or at the end of a `with`."""

    def __init__(self, line: WaitingLine, size: int) -> None:
        self._line = line
        self._size = size
        line._waiting += size

    def leave(self) -> None:
        """Makes room for others. Idempotent."""
        self._line._waiting -= self._size
        self._size = 0

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()
