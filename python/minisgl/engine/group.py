"""The ranks of one engine: processes that start, work and end together."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minisgl.config import STEP_TIMEOUT
from minisgl.engine.local_ranks import LAST_WORDS_SECONDS, LocalRanks
from minisgl.engine.nodes import NodeHub, plan_keys, sum_secret
from minisgl.engine.placement import divide_cores
from minisgl.engine.watch import RankWatch
from minisgl.ipc.messages import (
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
from minisgl.ipc.node_link import EndRanks, FromNode, RankWord, StartRanks

CAUSE_SECONDS = LAST_WORDS_SECONDS + 0.3  # from the first news of a loss to its cause


class EngineStartError(Exception):
    """The engine could not be started. The sentence is meant for the screen."""


@dataclass(frozen=True)
class _Loss:
    """Why a rank is lost, and the rank that caused it, if it was another; else -1."""

    reason: str
    blamed_rank: int


class RankGroup:
    """`size` ranks, on this host or in equal parts on several. Made, start(), then stop() or
    kill(), and close() in any case.

    The loss of one rank is the loss of all: whoever waits in wait_lost() is told why, and closes
    the group. A process that ends is noticed at once; one that is stopped, stuck or out of reach
    by the watch.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        command: Sequence[str],
        size: int = 1,
        comm: str = "auto",
        step_timeout: float = STEP_TIMEOUT,
        hub: NodeHub | None = None,
        on_phase: Callable[[PhaseReport], None] = lambda report: None,
        on_outputs: Callable[[StepOutputs], None] = lambda outputs: None,
    ) -> None:
        """`step_timeout`: seconds that a rank with work may go on without progress, and a running
        collective may take. `hub`: the other hosts, where there are any.
        """
        self._options = options
        self._size = size
        self._local_size = size // (hub.nnodes if hub else 1)
        self._comm = comm
        self._step_timeout = step_timeout
        self._hub = hub
        self._on_phase = on_phase
        self._on_outputs = on_outputs
        self._name = f"minisgl-{secrets.token_hex(16)}"
        self._ranks = LocalRanks(command, self._handle, self._note_end)
        self._infos: dict[int, EngineInfo] = {}
        self._watch = RankWatch(range(size), step_timeout, self._note_end)
        self._losses: dict[int, _Loss] = {}  # by rank, in the order of the news
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._all_ready = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    # --- life

    async def start(self) -> list[EngineInfo]:
        """Starts all ranks and waits until each is ready. Raises EngineStartError."""
        places = self._places()
        own = places[: self._local_size]
        try:
            if self._hub:
                await self._start_nodes(self._hub, places)
                own = [self._with_keys(place, self._hub) for place in own]
            await self._ranks.start(self._options, own, ring=self._local_size > 1)
        except OSError as error:
            raise EngineStartError(f"the engine process can't be started: {error}") from error
        self._tasks.append(asyncio.create_task(self._watch.run()))
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
        if self._hub:
            for number in range(1, self._hub.nnodes):
                self._hub.send(number, EndRanks())

    async def close(self) -> None:
        """Ends what still runs, and removes everything."""
        self.kill()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._ranks.close()

    def abandon(self) -> None:
        """kill(), and close as much as can be closed without waiting."""
        self.kill()
        self._ranks.abandon()

    def send(self, message: Any) -> bool:
        """Puts a message to rank 0 without waiting; False when it is gone."""
        return self._ranks.send(0, message)

    # --- where ranks are

    def _places(self) -> list[Place]:
        hub = self._hub
        cores = divide_cores(sorted(os.sched_getaffinity(0)), self._local_size)
        return [
            Place(
                rank=rank,
                size=self._size,
                local_rank=rank % self._local_size,
                local_size=self._local_size,
                cores=cores[rank] if rank < self._local_size else [],
                comm=self._comm,
                step_timeout=self._step_timeout,
                name=self._name,
                host=hub.host if hub else "",
                plan_port=hub.port + 1 if hub else 0,
                sum_port=hub.port + 2 if hub else 0,
            )
            for rank in range(self._size)
        ]

    async def _start_nodes(self, hub: NodeHub, places: list[Place]) -> None:
        if missing := hub.missing():
            self._on_phase(PhaseReport(phase=f"waiting for hosts {missing}"))
        await hub.wait_all()
        hub.on_message = self._handle_node
        hub.on_lost = self._lose_node
        for number in range(1, hub.nnodes):
            first = number * self._local_size
            hub.send(number, StartRanks(self._options, places[first : first + self._local_size]))

    def _with_keys(self, place: Place, hub: NodeHub) -> Place:
        others = range(self._local_size, self._size) if place.rank == 0 else ()
        return place.at(
            secret=sum_secret(hub.secret, self._name),
            remotes=[plan_keys(hub.secret, self._name, rank) for rank in others],
        )

    # --- news

    def _handle_node(self, message: FromNode) -> None:
        if message.group != self._name:
            return
        if not self._local_size <= message.rank < self._size:
            return
        if isinstance(message, RankWord):
            self._handle(message.rank, message.message)
        else:
            self._note_end(message.rank, message.reason)

    def _lose_node(self, number: int) -> None:
        first = number * self._local_size
        for rank in range(first, first + self._local_size):
            self._lose(rank, f"host {number} is lost")

    def _note_end(self, rank: int, how: str) -> None:
        when = "" if self._all_ready.is_set() else " while starting"
        self._lose(rank, f"{self._describe(rank)} {how}{when}")

    def _handle(self, rank: int, message: FromRank) -> None:
        self._watch.hear(rank, message)
        if isinstance(message, StepOutputs):
            self._on_outputs(message)
        elif isinstance(message, PhaseReport):
            if rank == 0:  # the others do the same at the same time
                self._on_phase(message)
        elif isinstance(message, Failed):
            sentence = f"rank {rank}: {message.message}" if self._size > 1 else message.message
            self._lose(rank, sentence, message.blamed_rank)
        elif isinstance(message, Ready):
            self._infos[rank] = message.info
            if len(self._infos) == self._size:
                self._all_ready.set()

    def _lose(self, rank: int, reason: str, blamed_rank: int = -1) -> None:
        if self._stopping or rank in self._losses:
            return
        self._losses[rank] = _Loss(reason, blamed_rank)
        if len(self._losses) == 1:
            self._tasks.append(asyncio.create_task(self._explain()))

    async def _explain(self) -> None:
        """Waits a moment for the cause: the first news may come from a rank that only missed
        another.
        """
        if self._size > 1:
            await asyncio.sleep(CAUSE_SECONDS)
        losses = list(self._losses.values())
        # "Rank 0: rank 1 has died" says less than what rank 1 died of.
        causes = [loss for loss in losses if loss.blamed_rank not in self._losses]
        self._lost.set_result((causes or losses)[0].reason)

    def _describe(self, rank: int) -> str:
        return "the engine process" if self._size == 1 else f"the process of rank {rank}"
