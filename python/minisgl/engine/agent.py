"""NodeAgent: a host other than 0. It starts ranks when host 0 says so, passes on what is said to
them and what they say, and ends them when host 0 is gone. See nodes.py for the other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence

from minisgl.engine.launcher import RankEvents
from minisgl.engine.local_ranks import LocalRanks
from minisgl.engine.nodes import ALIVE_SECONDS, plan_keys, sum_secret
from minisgl.engine.placement import Share
from minisgl.engine.site import divided_memory
from minisgl.environment import default_cache_dir
from minisgl.ipc.messages import Alive, NamedModel, PhaseReport, Shutdown
from minisgl.ipc.node_link import (
    EndRanks,
    Farewell,
    GroupEnd,
    HostReport,
    NodeLink,
    NodeLinkError,
    RankEnd,
    RankGone,
    RankMail,
    RankWord,
    ReleaseMismatch,
    StartRanks,
    StopRanks,
    connect_to_server,
)
from minisgl.tasks import background, in_daemon_thread

SILENT_SECONDS = 7.0  # without a sign of life, and host 0 is lost
RETRY_SECONDS = 0.5  # between two attempts to reach host 0

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Home:
    """What a host's ranks run in."""

    model_path: str
    command: Sequence[str]  # the rank program
    # Finds or downloads another model, on a thread: its path. ModelError, an Exception with a
    # sentence, where there is none.
    find: Callable[[NamedModel], str]
    # Groups that the host and its memory are divided among, where the server doesn't know it; 0: it
    # does, and has done so. With `on_gpus` they share its memory alone.
    sharers: int = 0
    on_gpus: bool = False


class HostedGroup:
    """The ranks that this host has of one group, from start to end."""

    def __init__(self, link: NodeLink, message: StartRanks, home: Home, secret: str) -> None:
        group = message.places[0].name
        self._link = link
        self._group = group
        self._home = home
        self._model = message.model
        self._options = dataclasses.replace(
            divided_memory(message.options, max(home.sharers, 1), on_gpus=home.on_gpus),
            cache_dir=str(default_cache_dir() or ""),
        )
        self._places = message.places
        if message.places[0].host:  # ranks of other hosts belong to it
            shared = sum_secret(secret, group)
            self._places = [
                place.at(secret=shared, remotes=[plan_keys(secret, group, place.rank)])
                for place in message.places
            ]
        self._events = RankEvents(
            message=lambda rank, word: link.send(RankWord(group, rank, word)),
            gone=lambda rank: link.send(RankGone(group, rank)),
            end=lambda rank, how: link.send(RankEnd(group, rank, how)),
        )
        sharers = message.sharers if home.on_gpus else home.sharers or message.sharers
        share = Share(tuple(message.gpus), tuple(message.cores), sharers)
        self._ranks = LocalRanks(home.command, self._events, share=share, label=message.label)
        self._work: list[asyncio.Task[None]] = []

    def start(self, after: Sequence[asyncio.Task[None]]) -> None:
        """Starts the ranks once these tasks are done."""
        self._work.append(background(self._start(after), f"the start of group {self._group}"))

    async def _start(self, after: Sequence[asyncio.Task[None]]) -> None:
        if after:
            await asyncio.wait(after)
        first, last = self._places[0].rank, self._places[-1].rank
        logger.info("starting ranks %d to %d", first, last)
        try:
            options = dataclasses.replace(self._options, model_path=await self._find_model())
        except Exception as error:
            self._events.end(first, f"can't be started: {error}")
            return
        try:
            await self._ranks.start(options, self._places)
        except OSError as error:
            self._events.end(first, f"can't be started: {error}")

    async def _find_model(self) -> str:
        """The path of this host's copy."""
        named = self._model
        if named is None:
            return self._home.model_path
        report = PhaseReport(phase=f"looking for {named.model or 'the default model'}")
        search = asyncio.create_task(in_daemon_thread(lambda: self._home.find(named), "model"))
        try:
            while not search.done():
                for place in self._places:  # they can't give a sign of life themselves
                    self._events.message(place.rank, report)
                await asyncio.wait({search}, timeout=ALIVE_SECONDS)
            return search.result()
        finally:
            search.cancel()

    def post(self, mail: RankMail) -> None:
        """Puts a message to a rank."""
        self._ranks.send(mail.rank, mail.message)

    def stop(self, listening: bool) -> None:
        """Begins to end the ranks in order."""
        farewell = Shutdown() if listening else None
        self._work.append(background(self._ranks.stop(farewell), f"the end of {self._group}"))

    async def stopped(self) -> None:
        """Ends the ranks in order."""
        await self._ranks.stop(Shutdown())

    async def end(self) -> None:
        """Ends what still runs, waits for it and says so."""
        self._ranks.kill()
        for task in self._work:
            task.cancel()
        if self._work:
            await asyncio.wait(self._work)
        with contextlib.suppress(Exception):
            await self._ranks.close()
        self._link.send(GroupEnd(self._group))


class NodeAgent:
    """A host other than 0, from start to end."""

    def __init__(
        self,
        home: Home,
        address: tuple[str, int],
        secret: str,
        number: int,
        patience: float,
        report: HostReport | None = None,
    ) -> None:
        """`number` is this host's; `patience`: seconds that host 0 may be out of reach; `report`:
        what this one has to offer.
        """
        self._report = report
        self._home = home
        self._address = address
        self._secret = secret
        self._number = number
        self._patience = patience
        self._groups: dict[str, HostedGroup] = {}
        self._endings: set[asyncio.Task[None]] = set()

    async def run(self) -> str:
        """Until host 0 says farewell (returns ""). Returns a sentence where host 0 has been gone
        for too long, or has another release.
        """
        try:
            while link := await self._connect():
                if self._report is not None:
                    link.send(self._report)
                pulse = background(_show_life(link), "the signs of life for host 0")
                try:
                    await self._obey(link)
                    logger.info("host 0 has ended in order, and so does this host")
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
                link = await connect_to_server(*self._address, self._secret, self._number)
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
                await asyncio.gather(*(group.stopped() for group in self._groups.values()))
                return
            if isinstance(message, RankMail):
                if group := self._groups.get(message.group):
                    group.post(message)
            elif isinstance(message, StartRanks):
                name = message.places[0].name
                self._end_group(name)
                self._groups[name] = HostedGroup(link, message, self._home, self._secret)
                self._groups[name].start(list(self._endings))
            elif isinstance(message, StopRanks):
                if group := self._groups.get(message.group):
                    group.stop(message.listening)
            elif isinstance(message, EndRanks) and not self._end_group(message.group):
                link.send(GroupEnd(message.group))

    def _end_group(self, name: str) -> bool:
        """Begins to end a group; False where there is none of that name."""
        group = self._groups.pop(name, None)
        if group is None:
            return False
        task = background(group.end(), f"the end of group {name}")
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
        return True

    async def _end_ranks(self) -> None:
        for name in list(self._groups):
            self._end_group(name)
        if self._endings:
            await asyncio.wait(set(self._endings))


async def _show_life(link: NodeLink) -> None:
    while True:
        link.send(Alive())
        await asyncio.sleep(ALIVE_SECONDS)
