"""The ranks of one engine: processes that start, work and end together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from minisgl.engine.placement import divide_cores
from minisgl.ipc.messages import (
    Alive,
    EngineInfo,
    EngineOptions,
    Failed,
    FromRank,
    PhaseReport,
    Place,
    Ready,
    Shutdown,
    Start,
    StepOutputs,
    decode_from_rank,
)
from minisgl.ipc.process import ChildProcess, describe_exit

LAST_WORDS_SECONDS = 0.5  # for messages of a rank that has ended already
CAUSE_SECONDS = LAST_WORDS_SECONDS + 0.3  # from the first news of a loss to its cause
TICK_SECONDS = 1.0
SILENT_TICKS = 8  # without a word from a rank that has spoken, and it is lost
MUTE_TICKS = 60  # without a first word
RING_BYTES = 4 * 2**20  # of plans that a rank may lag behind

Rank = ChildProcess[FromRank]


class EngineStartError(Exception):
    """The engine could not be started. The sentence is meant for the screen."""


class RankGroup:
    """`size` ranks on this host. Made, start(), then stop() or kill(), and close() in any case.

    The loss of one rank is the loss of all: whoever waits in wait_lost() is told why, and closes
    the group. A process that ends is noticed at once; one that is stopped or stuck after
    SILENT_TICKS seconds without a sign of life.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        command: Sequence[str],
        size: int = 1,
        comm: str = "auto",
        on_phase: Callable[[PhaseReport], None] = lambda report: None,
        on_outputs: Callable[[StepOutputs], None] = lambda outputs: None,
    ) -> None:
        self._options = options
        self._command = tuple(command)
        self._size = size
        self._comm = comm
        self._on_phase = on_phase
        self._on_outputs = on_outputs
        self._ranks: dict[int, Rank] = {}
        self._infos: dict[int, EngineInfo] = {}
        self._silence: dict[int, int] = {}  # ticks since the last word
        self._heard: set[int] = set()  # ranks that have spoken
        self._reasons: dict[int, str] = {}  # what lost ranks died of, in the order of the news
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._all_ready = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    # --- life

    async def start(self) -> list[EngineInfo]:
        """Starts all ranks and waits until each is ready. Raises EngineStartError."""
        with contextlib.ExitStack() as stack:
            ring = self._make_ring(stack)
            try:
                for place in self._places(ring):
                    await self._spawn(place, [ring] if ring >= 0 else [])
            except OSError as error:
                raise EngineStartError(f"the engine process can't be started: {error}") from error
        self._tasks.append(asyncio.create_task(self._watch_silence()))
        ready = asyncio.create_task(self._all_ready.wait())
        lost = asyncio.create_task(self.wait_lost())
        try:
            await asyncio.wait({ready, lost}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            lost.cancel()
        if self._lost.done():
            raise EngineStartError(self._lost.result())
        return [self._infos[rank] for rank in range(self._size)]

    async def wait_lost(self) -> str:
        """Why the group is lost, once a rank is."""
        return await asyncio.shield(self._lost)

    async def stop(self) -> None:
        """Ends all ranks, in order as far as they listen."""
        self._stopping = True
        farewell = Shutdown() if self._all_ready.is_set() and not self._lost.done() else None
        await asyncio.gather(*(rank.stop(farewell) for rank in self._ranks.values()))

    def kill(self) -> None:
        """Ends all ranks at once."""
        self._stopping = True
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

    # --- messages

    def send(self, message: Any) -> bool:
        """Puts a message to rank 0 without waiting; False when it is gone."""
        return 0 in self._ranks and self._ranks[0].send(message)

    def _make_ring(self, stack: contextlib.ExitStack) -> int:
        # Memory without a name: it is gone with the last rank.
        if self._size == 1:
            return -1
        ring = os.memfd_create("minisgl-plans", os.MFD_CLOEXEC)
        stack.callback(os.close, ring)
        os.ftruncate(ring, RING_BYTES)
        return ring

    def _places(self, ring: int) -> list[Place]:
        name = f"minisgl-{secrets.token_hex(16)}"
        cores = divide_cores(sorted(os.sched_getaffinity(0)), self._size)
        return [
            Place(
                rank=rank,
                size=self._size,
                local_rank=rank,
                local_size=self._size,
                cores=cores[rank],
                comm=self._comm,
                name=name,
                ring_fd=ring,
            )
            for rank in range(self._size)
        ]

    async def _spawn(self, place: Place, pass_fds: Sequence[int]) -> None:
        rank: Rank = await ChildProcess.spawn(self._command, decode_from_rank, pass_fds)
        self._ranks[place.rank] = rank
        self._silence[place.rank] = 0
        self._tasks.append(asyncio.create_task(self._listen(place, rank)))

    async def _listen(self, place: Place, rank: Rank) -> None:
        """Hears what a rank says until it ends."""
        reader = asyncio.create_task(self._read(place, rank))
        try:
            status = await rank.wait()
            await asyncio.wait({reader}, timeout=LAST_WORDS_SECONDS)
            when = "" if self._all_ready.is_set() else " while starting"
            self._lose(place.rank, f"{self._name(place.rank)} {describe_exit(status)}{when}")
        finally:
            reader.cancel()

    async def _read(self, place: Place, rank: Rank) -> None:
        await rank.configure(Start(self._options, place))
        while True:
            self._handle(place.rank, await rank.receive())

    def _handle(self, rank: int, message: FromRank) -> None:
        self._silence[rank] = 0
        self._heard.add(rank)
        if isinstance(message, StepOutputs):
            self._on_outputs(message)
        elif isinstance(message, PhaseReport):
            if rank == 0:  # the others do the same at the same time
                self._on_phase(message)
        elif isinstance(message, Failed):
            self._lose(
                rank, f"rank {rank}: {message.message}" if self._size > 1 else message.message
            )
        elif isinstance(message, Ready):
            self._infos[rank] = message.info
            if len(self._infos) == self._size:
                self._all_ready.set()
        else:
            assert isinstance(message, Alive)

    async def _watch_silence(self) -> None:
        # Counts its own ticks, not the time: where this process was stopped, too, nobody is late.
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for rank in self._silence:
                self._silence[rank] += 1
                limit = SILENT_TICKS if rank in self._heard else MUTE_TICKS
                if self._silence[rank] > limit:
                    self._lose(rank, f"{self._name(rank)} gave no sign of life for {limit} s")

    def _lose(self, rank: int, reason: str) -> None:
        if self._stopping or rank in self._reasons:
            return
        self._reasons[rank] = reason
        if len(self._reasons) == 1:
            self._tasks.append(asyncio.create_task(self._explain()))

    async def _explain(self) -> None:
        """Waits a moment for the cause: the first news may come from a rank that only missed
        another.
        """
        if self._size > 1:
            await asyncio.sleep(CAUSE_SECONDS)
        reasons = list(self._reasons.values())
        causes = [reason for reason in reasons if not self._blames_another(reason)]
        self._lost.set_result((causes or reasons)[0])

    def _blames_another(self, reason: str) -> bool:
        """Whether "rank 0: rank 1 has died" is all that it says."""
        mentioned = [int(number) for number in re.findall(r"\brank (\d+)", reason)]
        return any(rank != mentioned[0] and rank in self._reasons for rank in mentioned[1:])

    def _name(self, rank: int) -> str:
        return "the engine process" if self._size == 1 else f"the process of rank {rank}"
