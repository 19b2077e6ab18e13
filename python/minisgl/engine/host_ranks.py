"""The ranks of a group on several hosts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minisgl.engine.launcher import RankEvents
from minisgl.engine.local_ranks import LocalRanks
from minisgl.engine.nodes import NodeHub, plan_keys, sum_secret
from minisgl.ipc.messages import EngineOptions, PhaseReport, Place
from minisgl.ipc.node_link import EndRanks, RankEnd, RankGone, RankWord, StartRanks


class HostRanks:
    """The RankLauncher of joined hosts, each with an equal part of the ranks: processes here, and
    those that the agents of the other hosts start when they are told to.
    """

    def __init__(self, hub: NodeHub, command: Sequence[str], events: RankEvents) -> None:
        """`command` is the rank program of this host."""
        self._hub = hub
        self._events = events
        self._local = LocalRanks(command, events)
        self._group = ""
        self._size = 0
        self._local_size = 0

    async def start(self, options: EngineOptions, places: Sequence[Place]) -> None:
        """As in RankLauncher."""
        hub = self._hub
        if missing := hub.missing():
            self._events.phase(PhaseReport(phase=f"waiting for hosts {missing}"))
        await hub.wait_all()
        self._group, self._size = places[0].name, len(places)
        self._local_size = self._size // hub.nnodes
        hub.on_message, hub.on_lost = self._hear, self._lose_host
        placed = [
            place.at(host=hub.host, plan_port=hub.port + 1, sum_port=hub.port + 2)
            for place in places
        ]
        for number in range(1, hub.nnodes):
            hub.send(number, StartRanks(options, [placed[rank] for rank in self._ranks_of(number)]))
        await self._local.start(options, [self._with_keys(placed[r]) for r in self._ranks_of(0)])

    def send(self, rank: int, message: Any) -> bool:
        """As in RankLauncher."""
        return self._local.send(rank, message)

    async def stop(self, farewell: Any | None) -> None:
        """As in RankLauncher."""
        await self._local.stop(farewell)  # rank 0 tells the others

    def kill(self) -> None:
        """As in RankLauncher."""
        self._local.kill()
        for number in range(1, self._hub.nnodes):
            self._hub.send(number, EndRanks())

    async def close(self) -> None:
        """As in RankLauncher."""
        self.kill()
        await self._local.close()

    def _ranks_of(self, number: int) -> range:
        return range(number * self._local_size, (number + 1) * self._local_size)

    def _with_keys(self, place: Place) -> Place:
        secret, group = self._hub.secret, self._group
        others = range(self._local_size, self._size) if place.rank == 0 else ()
        return place.at(
            secret=sum_secret(secret, group),
            remotes=[plan_keys(secret, group, rank) for rank in others],
        )

    def _hear(self, message: RankWord | RankGone | RankEnd) -> None:
        if message.group != self._group or not self._local_size <= message.rank < self._size:
            return
        if isinstance(message, RankWord):
            self._events.message(message.rank, message.message)
        elif isinstance(message, RankGone):
            self._events.gone(message.rank)
        else:
            self._events.end(message.rank, message.reason)

    def _lose_host(self, number: int, why: str) -> None:
        self._events.host_lost(self._ranks_of(number), f"host {number} was lost: {why}")
