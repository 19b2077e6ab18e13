"""Turns: work that is done one piece at a time, for senders who take turns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Turns:
    """A lock. Of those who wait for it each sender's first one has it before any sender's second
    one has. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._taken = False
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}  # whose turn is next first

    @asynccontextmanager
    async def turn(self, sender: Hashable) -> AsyncIterator[None]:
        """Waits for the sender's turn, and has it."""
        if self._taken:
            await self._wait(sender)
        self._taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, sender: Hashable) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(sender, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was given to who is gone
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Gives the turn to the next who still waits."""
        while self._waiting:
            sender = next(iter(self._waiting))
            line = self._waiting.pop(sender)
            turn = line.popleft()
            if line:
                self._waiting[sender] = line  # behind all others
            if not turn.done():
                turn.set_result(None)
                return
        self._taken = False
