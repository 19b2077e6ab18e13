"""NodeHub: the hosts other than 0, as host 0 sees them. See agent.py for the other end."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from minisgl.ipc.messages import Alive, PlanKeys
from minisgl.ipc.node_link import (
    Farewell,
    HostReport,
    NodeLink,
    NodeLinkError,
    OfGroup,
    ToNode,
    derive_key,
    greet_node,
)
from minisgl.tasks import background

ALIVE_SECONDS = 1.0  # between two signs of life of a host
# Seconds without one, and another host is lost: before its ranks are missed (RankWatch).
SILENT_TICKS = 6
QUIET_TICKS = 3  # and a guest may come again before it is missed
FAREWELL_SECONDS = 2.0  # for a host to hear the last word and to leave
FIRST_GUEST = 1024  # the least number of a host that has no part of the server's own model

logger = logging.getLogger(__name__)


def plan_keys(secret: str, group: str, rank: int) -> PlanKeys:
    """What a rank and rank 0 show each other, as both ends derive it."""
    follower, primary = (derive_key(secret, "plans", group, rank, end) for end in (1, 0))
    return PlanKeys(rank, follower, primary)


def sum_secret(secret: str, group: str) -> str:
    """What ranks of a group show each other before they sum."""
    return derive_key(secret, "sums", group).hex()


class GroupListener(Protocol):
    """Whom the hub tells what other hosts say of a group."""

    def hear(self, number: int, message: OfGroup) -> None:
        """Host `number` said this."""

    def lose_host(self, number: int, why: str) -> None:
        """Host `number` can't be reached any more."""


class NodeHub:
    """The other hosts, as host 0 sees them: those that share a model with it, numbers 1 to
    nnodes - 1, and guests, numbers of FIRST_GUEST and more, which have whole groups.
    """

    def __init__(
        self, host: str, port: int, secret: str, nnodes: int = 1, *, guests: bool = False
    ) -> None:
        """Port 0 takes any free one; `port` is then the one taken, once open() has returned."""
        self.host = host
        self.port = port
        self.secret = secret
        self.nnodes = nnodes
        self._guests = guests
        self._listeners: dict[str, GroupListener] = {}
        self.reports: dict[int, HostReport] = {}  # of guests that are connected
        self._links: dict[int, NodeLink] = {}
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._pulse: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Listens at the address and nowhere else. OSError where that isn't possible."""
        self._server = await asyncio.start_server(self._admit, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self._pulse = background(self._keep_links(), "the watch of other hosts")

    def listen(self, group: str, listener: GroupListener) -> None:
        """Tells the listener from now on what concerns the group."""
        self._listeners[group] = listener

    def forget(self, group: str) -> None:
        """The end of listen()."""
        self._listeners.pop(group, None)

    def missing(self) -> list[int]:
        """Hosts of the model that are not connected."""
        return [number for number in range(1, self.nnodes) if number not in self._links]

    def connected(self, number: int) -> bool:
        """Whether a host can be reached."""
        return number in self._links

    async def wait_for(self, *numbers: int) -> None:
        """Until all these hosts are connected."""
        while not all(map(self.connected, numbers)):
            self._changed.clear()
            await self._changed.wait()

    def send(self, number: int, message: ToNode) -> bool:
        """Puts a message to a host; False when it is gone."""
        if link := self._links.get(number):
            link.send(message)
        return link is not None

    async def close(self) -> None:
        """Says farewell to all and lets them leave first: to close a connection on what a host has
        sent meanwhile resets it, and the host may miss the last word.
        """
        if self._server is not None:
            self._server.close()
        if self._pulse is not None:
            self._pulse.cancel()
        links = list(self._links.values())
        self._links.clear()  # nobody is lost any more
        for link in links:
            link.send(Farewell())
        leaving = [asyncio.create_task(link.wait_closed()) for link in links]
        if leaving:
            await asyncio.wait(leaving, timeout=FAREWELL_SECONDS)
        for link in links:
            link.abort()

    async def _keep_links(self) -> None:
        """Shows the other hosts that this one lives, and gives up those that don't show it."""
        while True:
            for link in list(self._links.values()):
                link.send(Alive())
                link.silent_ticks += 1
                if link.silent_ticks > SILENT_TICKS:
                    self._lose(link, f"it gave no sign of life for {SILENT_TICKS} s")
            await asyncio.sleep(ALIVE_SECONDS)

    def _lose(self, link: NodeLink, why: str) -> None:
        """Closes a link, after which the host may come again. Tells of it once."""
        link.abort()
        if self._links.get(link.node_rank) is link:
            del self._links[link.node_rank]
            self.reports.pop(link.node_rank, None)
            for listener in list(self._listeners.values()):
                listener.lose_host(link.node_rank, why)

    def _fault(self, number: int) -> str:
        if 1 <= number < self.nnodes:
            return ""
        if self._guests and number >= FIRST_GUEST:
            known = self._links.get(number)
            is_there = known is not None and known.silent_ticks < QUIET_TICKS
            return "a host of this name is there already" if is_there else ""
        if self.nnodes == 1:
            return "it has ranks of a model to offer (--node-rank), and --nnodes is 1 here"
        return (
            f"its --node-rank is {number}; with --nnodes {self.nnodes} it must be 1 to "
            f"{self.nnodes - 1}"
        )

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        try:
            link = await greet_node(reader, writer, self.secret, self._fault)
        except NodeLinkError as error:
            logger.warning("turned away a connection from %s: %s", peer, error)
            writer.close()
            return
        number = link.node_rank
        if before := self._links.get(number):
            self._lose(before, "it came again before it was missed")
        self._links[number] = link
        self._changed.set()
        logger.info("host %d is there (%s)", number, peer[0])
        why = "this host doesn't listen any more"
        try:
            while True:
                message = await link.receive_from_node()
                if isinstance(message, Alive):
                    continue
                if isinstance(message, HostReport):
                    self.reports[number] = message
                elif listener := self._listeners.get(message.group):
                    listener.hear(number, message)
        except NodeLinkError as error:
            why = str(error)
        except Exception as error:  # a host that isn't heard any more is a lost one
            logger.exception("unexpected error while reading from host %d", number)
            why = f"it can't be heard: {error!r}"
        finally:
            self._lose(link, why)
