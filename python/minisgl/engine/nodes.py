"""Several hosts. Host 0 serves and plans; each other host runs a NodeAgent, which starts ranks when
host 0 says so, passes on what they say, and ends them when host 0 is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence

from minisgl.engine.launcher import RankEvents
from minisgl.engine.local_ranks import LocalRanks
from minisgl.environment import default_cache_dir
from minisgl.ipc.messages import Alive, PlanKeys, Shutdown
from minisgl.ipc.node_link import (
    EndRanks,
    Farewell,
    NodeLink,
    NodeLinkError,
    RankEnd,
    RankGone,
    RankWord,
    ReleaseMismatch,
    StartRanks,
    connect_to_server,
    derive_key,
    greet_node,
)
from minisgl.tasks import background

ALIVE_SECONDS = 1.0  # between two signs of life of a host
SILENT_SECONDS = 7.0  # without one, and host 0 is lost
# Seconds without one, and another host is lost: before its ranks are missed (RankWatch).
SILENT_TICKS = 6
RETRY_SECONDS = 0.5  # between two attempts to reach host 0

logger = logging.getLogger(__name__)


def plan_keys(secret: str, group: str, rank: int) -> PlanKeys:
    """What a rank and rank 0 show each other, as both ends derive it."""
    follower, primary = (derive_key(secret, "plans", group, rank, end) for end in (1, 0))
    return PlanKeys(rank, follower, primary)


def sum_secret(secret: str, group: str) -> str:
    """What ranks of a group show each other before they sum."""
    return derive_key(secret, "sums", group).hex()


class NodeHub:
    """The other hosts, as host 0 sees them."""

    def __init__(self, host: str, port: int, secret: str, nnodes: int) -> None:
        self.host = host
        self.port = port
        self.secret = secret
        self.nnodes = nnodes
        self.on_message: Callable[[RankWord | RankGone | RankEnd], None] = lambda message: None
        self.on_lost: Callable[[int, str], None] = lambda node_rank, why: None
        self._links: dict[int, NodeLink] = {}
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._pulse: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Listens at the address and nowhere else. OSError where that isn't possible."""
        self._server = await asyncio.start_server(self._admit, self.host, self.port)
        self._pulse = background(self._keep_links(), "the watch of other hosts")

    def missing(self) -> list[int]:
        """Hosts that are not connected."""
        return [number for number in range(1, self.nnodes) if number not in self._links]

    async def wait_all(self) -> None:
        """Until every host is connected."""
        while self.missing():
            self._changed.clear()
            await self._changed.wait()

    def send(self, node_rank: int, message: StartRanks | EndRanks) -> None:
        """Puts a message to a host; nothing happens when it is gone."""
        if link := self._links.get(node_rank):
            link.send(message)

    async def close(self) -> None:
        """Says farewell to all."""
        for link in self._links.values():
            link.send(Farewell())
            link.close()
        self._links.clear()
        if self._server is not None:
            self._server.close()
        if self._pulse is not None:
            self._pulse.cancel()

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
            self.on_lost(link.node_rank, why)

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        try:
            link = await greet_node(reader, writer, self.secret, self.nnodes)
        except NodeLinkError as error:
            logger.warning("turned away a connection from %s: %s", peer, error)
            writer.close()
            return
        if before := self._links.get(link.node_rank):
            self._lose(before, "it came again before it was missed")
        self._links[link.node_rank] = link
        self._changed.set()
        logger.info("host %d is there (%s)", link.node_rank, peer[0])
        why = "this host doesn't listen any more"
        try:
            while True:
                message = await link.receive_from_node()
                if not isinstance(message, Alive):
                    self.on_message(message)
        except NodeLinkError as error:
            why = str(error)
        except Exception as error:  # a host that isn't heard any more is a lost one
            logger.exception("unexpected error while reading from host %d", link.node_rank)
            why = f"it can't be heard: {error!r}"
        finally:
            self._lose(link, why)


class NodeAgent:
    """A host other than 0, from start to end."""

    def __init__(
        self,
        model_path: str,
        address: tuple[str, int],
        secret: str,
        node_rank: int,
        command: Sequence[str],
        patience: float,
    ) -> None:
        """`patience`: seconds that host 0 may be out of reach."""
        self._model_path = model_path
        self._address = address
        self._secret = secret
        self._node_rank = node_rank
        self._command = command
        self._patience = patience
        self._ranks: LocalRanks | None = None

    async def run(self) -> str:
        """Until host 0 says farewell (returns ""). Returns a sentence where host 0 has been gone
        for too long, or has another release.
        """
        try:
            while link := await self._connect():
                pulse = background(_show_life(link), "the signs of life for host 0")
                try:
                    await self._obey(link)
                    return ""
                except NodeLinkError as error:
                    logger.error("host 0 is lost: %s; its ranks here end", error)
                finally:
                    pulse.cancel()
                    link.close()
                    await self._end_ranks()
        except ReleaseMismatch as error:
            return str(error)
        finally:
            await self._end_ranks()
        host, port = self._address
        return f"host 0 can't be reached at {host}:{port} within {self._patience:g} s"

    async def _connect(self) -> NodeLink | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        said = ""
        while loop.time() < deadline:
            try:
                link = await connect_to_server(*self._address, self._secret, self._node_rank)
            except ReleaseMismatch:
                raise
            except (OSError, NodeLinkError) as error:
                if str(error) != said:
                    said = str(error)
                    logger.info("waiting for host 0: %s", said)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                logger.info("connected to host 0 at %s:%d", *self._address)
                return link
        return None

    async def _obey(self, link: NodeLink) -> None:
        while True:
            try:
                message = await asyncio.wait_for(link.receive_from_server(), SILENT_SECONDS)
            except asyncio.TimeoutError as error:
                raise NodeLinkError(f"it gave no sign of life for {SILENT_SECONDS:g} s") from error
            if isinstance(message, Farewell):
                if self._ranks is not None:
                    await self._ranks.stop(Shutdown())
                return
            if isinstance(message, (StartRanks, EndRanks)):
                await self._end_ranks()
            if isinstance(message, StartRanks):
                await self._start_ranks(link, message)

    async def _start_ranks(self, link: NodeLink, message: StartRanks) -> None:
        group = message.places[0].name

        events = RankEvents(
            message=lambda rank, word: link.send(RankWord(group, rank, word)),
            gone=lambda rank: link.send(RankGone(group, rank)),
            end=lambda rank, how: link.send(RankEnd(group, rank, how)),
        )
        places = [
            place.at(
                secret=sum_secret(self._secret, group),
                remotes=[plan_keys(self._secret, group, place.rank)],
            )
            for place in message.places
        ]
        options = dataclasses.replace(
            message.options, model_path=self._model_path, cache_dir=str(default_cache_dir() or "")
        )
        self._ranks = LocalRanks(self._command, events)
        logger.info("starting ranks %d to %d", places[0].rank, places[-1].rank)
        try:
            await self._ranks.start(options, places)
        except OSError as error:
            events.end(places[0].rank, f"can't be started: {error}")

    async def _end_ranks(self) -> None:
        ranks, self._ranks = self._ranks, None
        if ranks is not None:
            with contextlib.suppress(Exception):
                await ranks.close()


async def _show_life(link: NodeLink) -> None:
    while True:
        link.send(Alive())
        await asyncio.sleep(ALIVE_SECONDS)
