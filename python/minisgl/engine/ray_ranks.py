"""The ranks of a group in a Ray cluster."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

from minisgl.engine.launcher import MakeLauncher, RankEvents
from minisgl.engine.linked_ranks import LinkedRanks
from minisgl.engine.placement import NoRoom
from minisgl.engine.ray_cluster import Guest, RayCluster
from minisgl.engine.served_model import ServedModel
from minisgl.ipc.messages import EngineOptions, NamedModel, PhaseReport, Place
from minisgl.tasks import background

CAUSE_SECONDS = 1.0  # from the loss of a connection to what Ray says of it


class RayLot:
    """A replica's place in a Ray cluster: an actor that has its ranks, one group after the other,
    for as long as Ray keeps it. Where Ray has lost it, the next group gets another one.
    """

    def __init__(self, cluster: RayCluster, number: int) -> None:
        """`number` is the replica's."""
        self.label = f"-R{number}"  # what the names of its processes end with
        self._cluster = cluster
        self._guest: Guest | None = None

    def launcher(self, model: ServedModel) -> MakeLauncher:
        """As in Lot."""
        return functools.partial(RayRanks, self._cluster, self, model.named)

    def fit(self, options: EngineOptions) -> EngineOptions:
        """As in Lot. The threads of a rank are the CPUs that were asked for."""
        return dataclasses.replace(options, num_threads=self._cluster.wish.cpus_per_rank)

    def give_back(self) -> None:
        """As in Lot."""
        if self._guest is not None:
            self._cluster.remove(self._guest)
            self._guest = None

    def __str__(self) -> str:
        return f"Ray, {self._cluster.group_size}"

    async def guest(self, model: NamedModel | None) -> Guest:
        """The actor that is there, or another one, which looks for this model first, once it is
        connected. Raises OSError where Ray says why there is none.
        """
        hub = self._cluster.hub
        while self._guest is None or not hub.connected(self._guest.number):
            self.give_back()
            guest = self._guest = await self._cluster.place(model)
            here = asyncio.create_task(hub.wait_for(guest.number))
            gone = asyncio.create_task(guest.gone.wait())
            try:
                await asyncio.wait({here, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                here.cancel()
                gone.cancel()
            if guest.gone.is_set() and not guest.with_node:
                raise OSError(guest.reason)
        return self._guest


class RaySite:
    """A Ray cluster."""

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster

    def take(self, number: int, *, at_once: bool = False) -> RayLot:
        """As in Site: there is always room, or Ray waits for it, and it doesn't tell which."""
        if at_once:
            raise NoRoom("Ray doesn't tell whether it has room for one more")
        return RayLot(self._cluster, number)


class RayRanks:
    """The RankLauncher of a Ray cluster. An actor that dies is the death of its ranks; one whose
    host is lost, or that can't be reached, is a lost host.
    """

    def __init__(
        self, cluster: RayCluster, lot: RayLot, model: NamedModel | None, events: RankEvents
    ) -> None:
        """`model`: None is the one that the server was started with."""
        self._cluster = cluster
        self._lot = lot
        self._model = model
        self._events = events
        self._guest: Guest | None = None
        self._ranks: LinkedRanks | None = None
        self._search: asyncio.Task[None] | None = None

    async def start(self, options: EngineOptions, places: Sequence[Place]) -> None:
        """As in RankLauncher. Waits until Ray has a place."""
        wish = f"waiting for Ray to place {self._cluster.group_size} on one host with the model"
        self._events.phase(PhaseReport(phase=wish))
        self._guest = await self._lot.guest(self._model)
        events = dataclasses.replace(self._events, host_lost=self._lose)
        # The actor may have been placed for another model than that of this group.
        model = self._model or self._cluster.wish.named
        self._ranks = LinkedRanks(
            self._cluster.hub,
            self._guest.number,
            events,
            label=self._lot.label,
            model=None if model == self._guest.model else model,
        )
        await self._ranks.start(options, places)

    def send(self, rank: int, message: Any) -> bool:
        """As in RankLauncher."""
        return self._ranks is not None and self._ranks.send(rank, message)

    async def stop(self, farewell: Any | None) -> None:
        """As in RankLauncher."""
        if self._ranks is not None:
            await self._ranks.stop(farewell)

    def kill(self) -> None:
        """As in RankLauncher."""
        if self._ranks is not None:
            self._ranks.kill()

    async def close(self) -> None:
        """As in RankLauncher. The actor stays for the next group."""
        if self._search is not None:
            self._search.cancel()
        if self._ranks is not None:
            await self._ranks.close()

    def _lose(self, ranks: Iterable[int], reason: str) -> None:
        for rank in ranks:
            self._events.gone(rank)
        self._search = background(self._explain(list(ranks), reason), "the search for Ray's reason")

    async def _explain(self, ranks: list[int], reason: str) -> None:
        guest = self._guest
        assert guest is not None
        try:
            await asyncio.wait_for(guest.gone.wait(), CAUSE_SECONDS)
        except asyncio.TimeoutError:
            self._events.host_lost(ranks, reason)
            return
        if guest.with_node:
            self._events.host_lost(ranks, f"a host of the Ray cluster was lost: {guest.reason}")
            return
        for rank in ranks:
            self._events.end(rank, f"ended with its Ray actor: {guest.reason}")
