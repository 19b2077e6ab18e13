"""The ranks of one engine: processes that start, work and end together."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from minisgl.engine.api import EngineStartError
from minisgl.engine.launcher import MakeLauncher, RankEvents
from minisgl.engine.local_ranks import LAST_WORDS_SECONDS
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
    StepOutputs,
)
from minisgl.tasks import background

CAUSE_SECONDS = LAST_WORDS_SECONDS + 0.3  # from the first news of a loss to its cause
TICK_SECONDS = 1.0
SILENT_TICKS = 7  # without a word from a rank that has spoken, and it is lost
MUTE_TICKS = 30  # without a first word


class RankGroup:
    """`size` ranks, wherever the launcher starts them. Made, start(), then stop() or kill(), and
    close() in any case.

    The loss of one rank is the loss of all: whoever waits in wait_lost() is told why, and closes
    the group. A process that ends is noticed at once; one that is stopped or stuck, or out of
    reach, after SILENT_TICKS seconds without a sign of life.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        launcher: MakeLauncher,
        size: int = 1,
        comm: str = "auto",
        on_phase: Callable[[PhaseReport], None] = lambda report: None,
        on_outputs: Callable[[StepOutputs], None] = lambda outputs: None,
    ) -> None:
        self._options = options
        self._size = size
        self._comm = comm
        self._on_phase = on_phase
        self._on_outputs = on_outputs
        self._name = f"minisgl-{secrets.token_hex(16)}"
        self._ranks = launcher(RankEvents(self._handle, self._note_end, on_phase))
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
        places = [
            Place(rank=rank, size=self._size, comm=self._comm, name=self._name)
            for rank in range(self._size)
        ]
        try:
            await self._ranks.start(self._options, places)
        except OSError as error:
            raise EngineStartError(f"the engine process can't be started: {error}") from error
        self._silence = {place.rank: 0 for place in places}
        self._keep(self._watch_silence(), "the watch of silent ranks")
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
        await self._ranks.stop(farewell)

    def kill(self) -> None:
        """Ends all ranks at once."""
        self._stopping = True
        self._ranks.kill()

    async def close(self) -> None:
        """Ends what still runs, and removes everything."""
        self.kill()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._ranks.close()

    def send(self, message: Any) -> bool:
        """Puts a message to rank 0 without waiting; False when it is gone."""
        return self._ranks.send(0, message)

    # --- news

    def _note_end(self, rank: int, how: str) -> None:
        when = "" if self._all_ready.is_set() else " while starting"
        self._lose(rank, f"{self._describe(rank)} {how}{when}")

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
                    self._lose(rank, f"{self._describe(rank)} gave no sign of life for {limit} s")

    def _lose(self, rank: int, reason: str) -> None:
        if self._stopping or rank in self._reasons:
            return
        self._reasons[rank] = reason
        if len(self._reasons) == 1:
            self._keep(self._explain(), "the search for a loss's cause")

    def _keep(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Runs a task without which the group can't be: its failure is the group's loss."""
        self._tasks.append(background(work, what, self._end))

    def _end(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_result(reason)

    async def _explain(self) -> None:
        """Waits a moment for the cause: the first news may come from a rank that only missed
        another.
        """
        if self._size > 1:
            await asyncio.sleep(CAUSE_SECONDS)
        reasons = list(self._reasons.values())
        causes = [reason for reason in reasons if not self._blames_another(reason)]
        self._end((causes or reasons)[0])

    def _blames_another(self, reason: str) -> bool:
        """Whether "rank 0: rank 1 has died" is all that it says."""
        mentioned = [int(number) for number in re.findall(r"\brank (\d+)", reason)]
        return any(rank != mentioned[0] and rank in self._reasons for rank in mentioned[1:])

    def _describe(self, rank: int) -> str:
        return "the engine process" if self._size == 1 else f"the process of rank {rank}"
