"""The ranks of a group on several hosts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from minisgl.engine.launcher import RankEvents
from minisgl.engine.local_ranks import LocalRanks
from minisgl.engine.nodes import NodeHub, plan_keys, sum_secret
from minisgl.ipc.messages import EngineOptions, PhaseReport, Place
from minisgl.ipc.node_link import (
    EndRanks,
    GroupEnd,
    OfGroup,
    RankGone,
    RankMail,
    RankWord,
    StartRanks,
)


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
        await hub.wait_for(*range(1, hub.nnodes))
        self._group, self._size = places[0].name, len(places)
        self._local_size = self._size // hub.nnodes
        hub.listen(self._group, self)
        placed = [
            place.at(host=hub.host, plan_port=hub.port + 1, sum_port=hub.port + 2)
            for place in places
        ]
        for number in range(1, hub.nnodes):
            hub.send(number, StartRanks(options, [placed[rank] for rank in self._ranks_of(number)]))
        await self._local.start(options, [self._with_keys(placed[r]) for r in self._ranks_of(0)])

    def send(self, rank: int, message: Any) -> bool:
        """As in RankLauncher."""
        if rank in self._ranks_of(0):
            return self._local.send(rank, message)
        raw = msgspec.Raw(msgspec.msgpack.encode(message))
        return self._hub.send(rank // self._local_size, RankMail(self._group, rank, raw))

    async def stop(self, farewell: Any | None) -> None:
        """As in RankLauncher."""
        await self._local.stop(farewell)  # rank 0 tells the others

    def kill(self) -> None:
        """As in RankLauncher."""
        self._local.kill()
        if self._group:
            for number in range(1, self._hub.nnodes):
                self._hub.send(number, EndRanks(self._group))

    async def close(self) -> None:
        """As in RankLauncher."""
        self.kill()
        self._hub.forget(self._group)
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

    def hear(self, number: int, message: OfGroup) -> None:
        """As in GroupListener."""
        if number < self._hub.nnodes:
            tell(self._events, self._ranks_of(number), message)

    def lose_host(self, number: int, why: str) -> None:
        """As in GroupListener."""
        if number < self._hub.nnodes:
            self._events.host_lost(self._ranks_of(number), f"host {number} was lost: {why}")


def tell(events: RankEvents, ranks: range, message: OfGroup) -> None:
    """Tells what a host said of its ranks; of others it can say nothing."""
    if isinstance(message, GroupEnd) or message.rank not in ranks:
        return
    if isinstance(message, RankWord):
        events.message(message.rank, message.message)
    elif isinstance(message, RankGone):
        events.gone(message.rank)
    else:
        events.end(message.rank, message.reason)
