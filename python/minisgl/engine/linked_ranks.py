"""The ranks of a group that are all on one other host."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import msgspec

from minisgl.engine.host_ranks import tell
from minisgl.engine.launcher import RankEvents
from minisgl.engine.local_ranks import WHOLE_HOST
from minisgl.engine.nodes import NodeHub
from minisgl.engine.placement import Share
from minisgl.ipc.messages import EngineOptions, NamedModel, PhaseReport, Place
from minisgl.ipc.node_link import (
    EndRanks,
    GroupEnd,
    OfGroup,
    RankEnd,
    RankMail,
    StartRanks,
    StopRanks,
)
from minisgl.ipc.process import STOP_SECONDS

# To end in order, by SIGTERM and by SIGKILL, each of which has STOP_SECONDS there, and the way.
ORDERLY_END_SECONDS = 3 * STOP_SECONDS + 1.0
END_SECONDS = 5.0  # for ranks that were killed to be gone


class LinkedRanks:
    """The RankLauncher of one other host, whose agent starts the ranks and passes on what is said
    to them and what they say.
    """

    def __init__(
        self,
        hub: NodeHub,
        number: int,
        events: RankEvents,
        *,
        share: Share = WHOLE_HOST,
        label: str = "",
        model: NamedModel | None = None,
    ) -> None:
        """`number` is the host's, `share` what of it the ranks have, and `label` what the names of
        their processes end with. `model`: None is the one that the host was started with.
        """
        self._model = model
        self._share = share
        self._label = label
        self._hub = hub
        self._number = number
        self._events = events
        self._group = ""
        self._running: set[int] = set()  # ranks that were started and whose end isn't known
        self._ranks = range(0)
        self._all_ended = asyncio.Event()  # of the ranks
        self._left = asyncio.Event()  # nothing of the group is on the host, or the host is lost

    async def start(self, options: EngineOptions, places: Sequence[Place]) -> None:
        """As in RankLauncher. Waits for the host."""
        if not self._hub.connected(self._number):
            self._events.phase(PhaseReport(phase=f"waiting for host {self._number}"))
        await self._hub.wait_for(self._number)
        self._group, self._ranks = places[0].name, range(len(places))
        self._running = set(self._ranks)
        self._hub.listen(self._group, self)
        share = self._share
        self._hub.send(
            self._number,
            StartRanks(
                options,
                list(places),
                list(share.gpus),
                list(share.cores),
                share.sharers,
                self._label,
                self._model,
            ),
        )

    def send(self, rank: int, message: Any) -> bool:
        """As in RankLauncher."""
        if rank not in self._running:
            return False
        raw = msgspec.Raw(msgspec.msgpack.encode(message))
        return self._hub.send(self._number, RankMail(self._group, rank, raw))

    async def stop(self, farewell: Any | None) -> None:
        """As in RankLauncher."""
        if self._running:
            self._hub.send(self._number, StopRanks(self._group, farewell is not None))
            await _within(self._all_ended, ORDERLY_END_SECONDS)

    def kill(self) -> None:
        """As in RankLauncher."""
        if self._group:
            self._hub.send(self._number, EndRanks(self._group))

    async def close(self) -> None:
        """As in RankLauncher. Ranks of a host that is out of reach end when it notices."""
        if not self._group:
            return
        self.kill()
        if self._hub.connected(self._number):
            await _within(self._left, END_SECONDS)
        self._hub.forget(self._group)
        self._group = ""

    def hear(self, number: int, message: OfGroup) -> None:
        """As in GroupListener."""
        if number != self._number:
            return
        if isinstance(message, GroupEnd):
            self._forget_ranks()
            return
        tell(self._events, self._ranks, message)
        if isinstance(message, RankEnd):
            self._running.discard(message.rank)
            if not self._running:
                self._all_ended.set()

    def lose_host(self, number: int, why: str) -> None:
        """As in GroupListener."""
        if number == self._number and self._group:
            self._forget_ranks()
            self._events.host_lost(self._ranks, f"host {number} was lost: {why}")

    def _forget_ranks(self) -> None:
        self._running.clear()
        self._all_ended.set()
        self._left.set()


async def _within(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
