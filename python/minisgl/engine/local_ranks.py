"""Rank processes of this host."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from typing import Any

from minisgl.children import python_command
from minisgl.engine.launcher import RankEvents
from minisgl.engine.machine import VISIBLE
from minisgl.engine.placement import Share
from minisgl.ipc.messages import EngineOptions, FromRank, Place, Start, from_rank_decoder
from minisgl.ipc.process import ChildProcess, describe_exit
from minisgl.tasks import background

RANK_COMMAND = python_command("minisgl.rank.main")
LAST_WORDS_SECONDS = 0.5  # for messages of a rank that has ended already
RING_BYTES = 4 * 2**20  # the plans that a rank may lag behind

WHOLE_HOST = Share()

logger = logging.getLogger(__name__)

Rank = ChildProcess[FromRank]


class LocalRanks:
    """The RankLauncher of this host: a process for each rank."""

    def __init__(
        self,
        command: Sequence[str],
        events: RankEvents,
        *,
        share: Share = WHOLE_HOST,
        label: str = "",
    ) -> None:
        """`command` is the rank program, `share` what of the host the ranks have, and `label` what
        the names of their processes end with.
        """
        self._command = tuple(command)
        self._events = events
        self._share = share
        self._label = label
        self._ranks: dict[int, Rank] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, options: EngineOptions, places: Sequence[Place]) -> None:
        """As in RankLauncher."""
        cores = self._share.divide(len(places), sorted(os.sched_getaffinity(0)))
        environment = {VISIBLE: ",".join(self._share.gpus)} if self._share.gpus else {}
        # Rank 0's plans reach the others of its host through memory that they share.
        ring = len(places) > 1 and places[0].rank == 0
        with contextlib.ExitStack() as stack:
            descriptor = -1
            if ring:
                # Memory without a name: it is gone with the last rank.
                descriptor = os.memfd_create("minisgl-plans", os.MFD_CLOEXEC)
                stack.callback(os.close, descriptor)
                os.ftruncate(descriptor, RING_BYTES)
            for number, (place, own_cores) in enumerate(zip(places, cores, strict=True)):
                inherited = [descriptor] if ring else []
                name = f"minisgl-TP{place.rank}-scheduler{self._label}"
                rank: Rank = await ChildProcess.spawn(
                    self._command, name, from_rank_decoder, inherited, environment
                )
                self._ranks[place.rank] = rank
                placed = place.at(
                    local_rank=number,
                    local_size=len(places),
                    cores=own_cores,
                    sharers=self._share.sharers * len(places),
                    ring_fd=descriptor,
                )
                start = Start(options, placed)
                listening = self._listen(place.rank, rank, start)
                self._tasks.append(background(listening, f"the watch of rank {place.rank}"))

    def send(self, rank: int, message: Any) -> bool:
        """As in RankLauncher."""
        return rank in self._ranks and self._ranks[rank].send(message)

    async def stop(self, farewell: Any | None) -> None:
        """As in RankLauncher."""
        await asyncio.gather(*(rank.stop(farewell) for rank in self._ranks.values()))

    def kill(self) -> None:
        """Ends all ranks at once."""
        for rank in self._ranks.values():
            rank.kill()

    async def close(self) -> None:
        """As in RankLauncher."""
        self.kill()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for rank in self._ranks.values():
            await rank.wait()
            rank.close()
        self._ranks.clear()

    async def _listen(self, number: int, rank: Rank, start: Start) -> None:
        """Hears what a rank says until it ends. A rank that can't be heard any more is killed."""
        reader = asyncio.create_task(self._read(number, rank, start))
        ended = asyncio.create_task(rank.wait())
        try:
            await asyncio.wait({reader, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not reader.done():
                self._events.gone(number)
                await asyncio.wait({reader}, timeout=LAST_WORDS_SECONDS)
            if reader.done() and (error := reader.exception()):
                logger.error("unexpected error while reading from rank %d", number, exc_info=error)
                rank.kill()
                self._events.end(number, f"can't be heard: {error!r}")
            else:
                self._events.end(number, describe_exit(ended.result()))
        finally:
            reader.cancel()
            ended.cancel()

    async def _read(self, number: int, rank: Rank, start: Start) -> None:
        await rank.configure(start)
        while True:
            self._events.message(number, await rank.receive())
