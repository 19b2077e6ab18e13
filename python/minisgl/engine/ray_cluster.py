"""RayCluster: a Ray cluster, as the server sees it. Ray itself is in a process of its own, the
keeper: nothing of it is imported here, and whatever becomes of it, the server lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from dataclasses import dataclass, field

from minisgl.children import python_command
from minisgl.engine.api import EngineStartError
from minisgl.engine.nodes import FIRST_GUEST, NodeHub
from minisgl.ipc.keeper import (
    AgentSpec,
    Connect,
    Connected,
    FromKeeper,
    GuestGone,
    NotConnected,
    PlaceGuest,
    RemoveGuest,
    from_keeper_decoder,
)
from minisgl.ipc.messages import NamedModel, Shutdown
from minisgl.ipc.process import ChildProcess, describe_exit
from minisgl.tasks import background

KEEPER_COMMAND = python_command("minisgl.ray.keeper")
KEEPER_NAME = "minisgl-ray"
LAST_WORDS_SECONDS = 0.5  # for messages of a keeper that has ended
FIRST_DELAY, MAX_DELAY = 1.0, 15.0  # seconds before the keeper is started again
AGENT_PATIENCE = 30.0  # seconds that an actor waits for its server

logger = logging.getLogger(__name__)

Keeper = ChildProcess[FromKeeper]


@dataclass(frozen=True)
class Wish:
    """What a server asks the cluster for, for each group."""

    address: str  # as ray.init() takes it
    model: str | None
    revision: str | None
    weights: bool
    ranks: int
    cpus_per_rank: int
    device: str  # the engine's option
    show_output: bool = True  # what actors print
    command: tuple[str, ...] = ()  # the rank program; empty: that of the actor's own minisgl
    log_level: str = "info"
    log_format: str = "text"

    @property
    def named(self) -> NamedModel:
        """The model, as each host looks for it."""
        return NamedModel(self.model, self.revision)


@dataclass(eq=False)
class Guest:
    """An actor with the ranks of a group, from the wish for it to its end."""

    number: int
    model: NamedModel  # that it has looked for
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = ""  # why it is gone
    with_node: bool = False  # its host is gone, too


class RayCluster:
    """Guests for as long as they are needed. Made, open(), then close() in any case.

    A cluster that is lost is looked for again, for as long as the server runs; its guests are gone
    with it.
    """

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.hub: NodeHub  # where guests connect to; there is one once open() has returned
        self._hub_is_open = False
        self._guests: dict[int, Guest] = {}
        self._numbers = itertools.count(FIRST_GUEST)
        self._keeper: Keeper | None = None
        self._gpus = 0.0
        self._connected = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connects to the cluster. Raises EngineStartError where there is none."""
        reason = await self._connect()
        if reason:
            raise EngineStartError(f"--cluster {self.wish.address}: {reason}")
        self._supervisor = background(self._supervise(), "the watch of the Ray cluster")

    async def close(self) -> None:
        """Ends all guests and the keeper. Idempotent."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
        await self._end_keeper(polite=True)
        if self._hub_is_open:
            await self.hub.close()

    @property
    def group_size(self) -> str:
        """What a group asks for, in words."""
        cpus, gpus = self._resources()
        words = [f"{n} {what}{'s' * (n != 1)}" for n, what in ((cpus, "CPU"), (gpus, "GPU")) if n]
        return " and ".join(words)

    async def place(self, model: NamedModel | None = None) -> Guest:
        """A new guest, as soon as the cluster can be reached. It connects to the hub once Ray has
        found a place for it, and it this model there (None: the wish's).
        """
        await self._connected.wait()
        model = model or self.wish.named
        guest = Guest(next(self._numbers), model)
        self._guests[guest.number] = guest
        cpus, gpus = self._resources()
        wish = self.wish
        agent = AgentSpec(
            model=model.model,
            revision=model.revision,
            weights=wish.weights,
            command=list(wish.command),
            cpus=cpus,
            gpus=gpus,
            host=self.hub.host,
            port=self.hub.port,
            secret=self.hub.secret,
            number=guest.number,
            patience=AGENT_PATIENCE,
            log_level=wish.log_level,
            log_format=wish.log_format,
        )
        assert self._keeper is not None
        self._keeper.send(PlaceGuest(cpus, gpus, agent))
        return guest

    def remove(self, guest: Guest) -> None:
        """Ends a guest and frees its place."""
        if self._guests.pop(guest.number, None) and self._keeper is not None:
            self._keeper.send(RemoveGuest(guest.number))

    def _resources(self) -> tuple[int, int]:
        """CPUs and GPUs of a group."""
        wish = self.wish
        on_gpu = wish.device == "cuda" or (wish.device == "auto" and self._gpus > 0)
        return wish.ranks * wish.cpus_per_rank, wish.ranks if on_gpu else 0

    async def _connect(self) -> str:
        """One attempt. Returns why it failed, "" when the cluster is there."""
        try:
            self._keeper = await Keeper.spawn(KEEPER_COMMAND, KEEPER_NAME, from_keeper_decoder)
        except OSError as error:
            return f"the process that talks to Ray can't be started: {error}"
        await self._keeper.configure(Connect(self.wish.address, self.wish.show_output))
        message = await self._hear()
        if isinstance(message, Connected):
            self._gpus = message.gpus
            try:
                await self._open_hub(message.host)
            except OSError as error:
                message = f"this host can't listen for Ray's actors at {message.host}: {error}"
            else:
                self._connected.set()
                return ""
        await self._end_keeper(polite=False)
        return message.reason if isinstance(message, NotConnected) else str(message)

    async def _open_hub(self, host: str) -> None:
        if not self._hub_is_open:
            self.hub = NodeHub(host, 0, secrets.token_hex(32), guests=True)
            await self.hub.open()
            self._hub_is_open = True

    async def _hear(self) -> FromKeeper | str:
        """The next message of the keeper, or what became of it."""
        assert self._keeper is not None
        heard = asyncio.create_task(self._keeper.receive())
        ended = asyncio.create_task(self._keeper.wait())
        try:
            await asyncio.wait({heard, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not heard.done():
                await asyncio.wait({heard}, timeout=LAST_WORDS_SECONDS)
            if heard.done():
                return heard.result()
            return f"the process that talks to Ray {describe_exit(ended.result())}"
        finally:
            heard.cancel()
            ended.cancel()

    async def _supervise(self) -> None:
        """Hears the keeper, and starts another one when it is lost, until it is cancelled."""
        while True:
            reason = await self._serve()
            logger.error("the Ray cluster is lost: %s; looking for it again", reason)
            self._connected.clear()
            await self._end_keeper(polite=False)
            for guest in list(self._guests.values()):
                self._note_gone(guest.number, reason, with_node=True)
            delay = FIRST_DELAY
            while failure := await self._connect():
                logger.warning("Ray can't be reached: %s; again in %g s", failure, delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, MAX_DELAY)
            logger.info("the Ray cluster is there again")

    async def _serve(self) -> str:
        """Until the keeper is lost, and why."""
        while True:
            message = await self._hear()
            if isinstance(message, GuestGone):
                self._note_gone(message.number, message.reason, message.with_node)
            elif isinstance(message, NotConnected):
                return message.reason
            elif isinstance(message, str):
                return message

    def _note_gone(self, number: int, reason: str, with_node: bool) -> None:
        if guest := self._guests.pop(number, None):
            guest.reason, guest.with_node = reason, with_node
            guest.gone.set()
            if self._keeper is not None:
                self._keeper.send(RemoveGuest(number))

    async def _end_keeper(self, polite: bool) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        with contextlib.suppress(Exception):
            if polite:
                await keeper.stop(Shutdown())
            keeper.kill()
            await keeper.wait()
        keeper.close()
