"""Rank processes of this host."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from minisgl.ipc.messages import EngineOptions, FromRank, Place, Start, decode_from_rank
from minisgl.ipc.process import ChildProcess, describe_exit

LAST_WORDS_SECONDS = 0.5  # for messages of a rank that has ended already
RING_BYTES = 4 * 2**20  # of plans that a rank may lag behind

logger = logging.getLogger(__name__)

Rank = ChildProcess[FromRank]


class LocalRanks:
    """Processes that are started once and ended together. close() is due in any case."""

    def __init__(
        self,
        command: Sequence[str],
        on_message: Callable[[int, FromRank], None],
        on_end: Callable[[int, str], None],
    ) -> None:
        """`on_message` gets what a rank says, `on_end` how its process ended ("was killed by
        SIGKILL"), after its last message.
        """
        self._command = tuple(command)
        self._on_message = on_message
        self._on_end = on_end
        self._ranks: dict[int, Rank] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, options: EngineOptions, places: Sequence[Place], ring: bool) -> None:
        """A process for each place; with `ring`, they share memory for plans. OSError."""
        with contextlib.ExitStack() as stack:
            descriptor = -1
            if ring:
                # Memory without a name: it is gone with the last rank.
                descriptor = os.memfd_create("minisgl-plans", os.MFD_CLOEXEC)
                stack.callback(os.close, descriptor)
                os.ftruncate(descriptor, RING_BYTES)
            for place in places:
                inherited = [descriptor] if ring else []
                rank: Rank = await ChildProcess.spawn(self._command, decode_from_rank, inherited)
                self._ranks[place.rank] = rank
                start = Start(options, place.at(ring_fd=descriptor))
                self._tasks.append(asyncio.create_task(self._listen(place.rank, rank, start)))

    def send(self, rank: int, message: Any) -> bool:
        """Puts a message without waiting; False when the rank is gone."""
        return rank in self._ranks and self._ranks[rank].send(message)

    async def stop(self, farewell: Any | None) -> None:
        """Ends all, in order as far as they listen to the farewell."""
        await asyncio.gather(*(rank.stop(farewell) for rank in self._ranks.values()))

    def kill(self) -> None:
        for rank in self._ranks.values():
            rank.kill()

    async def close(self) -> None:
        """Ends what still runs, and removes everything."""
        self.kill()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for rank in self._ranks.values():
            await rank.wait()
            rank.close()
        self._ranks.clear()

    def abandon(self) -> None:
        """kill(), and close as much as can be closed without waiting."""
        self.kill()
        for rank in self._ranks.values():
            rank.close()
        self._ranks.clear()

    async def _listen(self, number: int, rank: Rank, start: Start) -> None:
        """Hears what a rank says until it ends. A rank that can't be heard any more is killed."""
        reader = asyncio.create_task(self._read(number, rank, start))
        ended = asyncio.create_task(rank.wait())
        try:
            await asyncio.wait({reader, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not reader.done():
                await asyncio.wait({reader}, timeout=LAST_WORDS_SECONDS)
            if reader.done() and (error := reader.exception()):
                logger.error("unexpected error while reading from rank %d", number, exc_info=error)
                rank.kill()
                self._on_end(number, f"can't be heard: {error!r}")
            else:
                self._on_end(number, describe_exit(ended.result()))
        finally:
            reader.cancel()
            ended.cancel()

    async def _read(self, number: int, rank: Rank, start: Start) -> None:
        await rank.configure(start)
        while True:
            self._on_message(number, await rank.receive())
