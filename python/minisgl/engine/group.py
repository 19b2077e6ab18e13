"""The ranks of one engine: processes that start, work and end together."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from minisgl.config import STEP_TIMEOUT
from minisgl.engine.adapters import Adapter, AdapterBook, AdapterError
from minisgl.engine.api import EngineStartError, HostLost
from minisgl.engine.launcher import MakeLauncher, RankEvents
from minisgl.engine.local_ranks import LAST_WORDS_SECONDS
from minisgl.engine.watch import RankWatch
from minisgl.ipc.messages import (
    AdapterLoaded,
    EngineInfo,
    EngineOptions,
    Failed,
    FromRank,
    LoadAdapter,
    PhaseReport,
    Place,
    Ready,
    Shutdown,
    StepOutputs,
    UnloadAdapter,
)
from minisgl.tasks import background

CAUSE_SECONDS = LAST_WORDS_SECONDS + 0.3  # from the first news of a loss to its cause

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loss:
    """Why a rank is lost."""

    reason: str
    blamed_rank: int = -1  # the rank that caused it, if it was another
    of_host: bool = False  # out of reach, with its host: nothing that it did is the cause


class RankGroup:
    """`size` ranks, wherever the launcher starts them. Made, start(), then stop() or kill(), and
    close() in any case.

    The loss of one rank is the loss of all: `lost` is true from the first news of it on, and
    whoever waits in wait_lost() is told why, and closes the group. A process that ends is noticed
    at once; one that is stopped, stuck or out of reach by the watch.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        launcher: MakeLauncher,
        size: int = 1,
        comm: str = "auto",
        step_timeout: float = STEP_TIMEOUT,
        on_phase: Callable[[PhaseReport], None] = lambda report: None,
        on_outputs: Callable[[StepOutputs], None] = lambda outputs: None,
        on_loss: Callable[[], None] = lambda: None,
        adapters: AdapterBook | None = None,
    ) -> None:
        """`adapters`: those that it must have before it is ready. `step_timeout`: seconds
        that a rank with work may go on without progress, and a running collective may take.
        `on_loss` hears the first news of a loss, before its cause is known.
        """
        self._options = options
        self._size = size
        self._comm = comm
        self._step_timeout = step_timeout
        self._on_phase = on_phase
        self._on_outputs = on_outputs
        self._on_loss = on_loss
        self._name = f"minisgl-{secrets.token_hex(16)}"
        self.lost = False
        events = RankEvents(
            self._handle, self._note_end, self._note_gone, self._note_host_loss, on_phase
        )
        self._ranks = launcher(events)
        self._infos: dict[int, EngineInfo] = {}
        self._watch = RankWatch(range(size), step_timeout, self._note_end)
        self._losses: dict[int, Loss] = {}  # by rank, in the order of the news
        self._lost: asyncio.Future[Loss] = asyncio.get_running_loop().create_future()
        self._all_ready = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._adapters = adapters or AdapterBook()
        self._told: set[int] = set()  # adapters that all ranks have
        self._answers: dict[tuple[int, int], asyncio.Future[str]] = {}  # by adapter and rank

    # --- life

    async def start(self) -> list[EngineInfo]:
        """Starts all ranks and waits until each is ready. Raises EngineStartError, and HostLost
        where it should be tried again.
        """
        places = [
            Place(
                rank=rank,
                size=self._size,
                comm=self._comm,
                step_timeout=self._step_timeout,
                name=self._name,
            )
            for rank in range(self._size)
        ]
        try:
            await self._ranks.start(self._options, places)
        except OSError as error:
            raise EngineStartError(f"the engine process can't be started: {error}") from error
        self._keep(self._watch.run(), "the watch of silent and stuck ranks")
        ready = asyncio.create_task(self._all_ready.wait())
        lost = asyncio.create_task(self.wait_lost())
        try:
            await asyncio.wait({ready, lost}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            lost.cancel()
        if self._lost.done():
            loss = self._lost.result()
            raise (HostLost if loss.of_host else EngineStartError)(loss.reason)
        await self._load_adapters()
        return [self._infos[rank] for rank in range(self._size)]

    async def _load_adapters(self) -> None:
        """What isn't loaded here yet. Raises EngineStartError for one that the server was started
        with; one that can't be had any more is left out.
        """
        while missing := [one for one in self._adapters.known if one.id not in self._told]:
            try:
                await self.load_adapter(missing[0])
            except AdapterError as error:
                if missing[0].is_first and not self._lost.done():
                    raise EngineStartError(str(error)) from None
                logger.error("adapter %r: %s", missing[0].name, error)
                self._told.add(missing[0].id)

    async def load_adapter(self, adapter: Adapter) -> None:
        """Has all ranks load it. Raises AdapterError."""
        loop = asyncio.get_running_loop()
        answers = {rank: loop.create_future() for rank in range(self._size)}
        for rank, answer in answers.items():
            self._answers[adapter.id, rank] = answer
            if not self._ranks.send(rank, LoadAdapter(adapter.id, adapter.path)):
                answer.set_result(f"rank {rank} can't be reached")
        lost = asyncio.create_task(self.wait_lost())
        waiting = {lost, *answers.values()}
        try:
            while not lost.done() and len(waiting) > 1:
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()
            for rank in answers:
                self._answers.pop((adapter.id, rank), None)
        if lost.done() and not lost.cancelled():
            raise AdapterError(f"the engine died while {adapter.path!r} was loaded")
        if errors := [error for answer in answers.values() if (error := answer.result())]:
            raise AdapterError(errors[0])
        self._told.add(adapter.id)

    def unload_adapter(self, adapter_id: int) -> None:
        """No request names it any more."""
        self._told.discard(adapter_id)
        for rank in range(self._size):
            self._ranks.send(rank, UnloadAdapter(adapter_id))

    @property
    def host_lost(self) -> bool:
        """Whether the news so far are of a host."""
        return any(loss.of_host for loss in self._losses.values())

    async def wait_lost(self) -> Loss:
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

    def _note_gone(self, rank: int) -> None:
        self._note_loss()

    def _note_loss(self) -> None:
        if self.lost:
            return
        self.lost = True
        if not self._stopping:
            self._on_loss()

    def _note_end(self, rank: int, how: str) -> None:
        when = "" if self._all_ready.is_set() else " while starting"
        self._lose(rank, Loss(f"{self._describe(rank)} {how}{when}"))

    def _note_host_loss(self, ranks: Iterable[int], reason: str) -> None:
        for rank in ranks:
            self._lose(rank, Loss(reason, of_host=True))

    def _handle(self, rank: int, message: FromRank) -> None:
        self._watch.hear(rank, message)
        if isinstance(message, StepOutputs):
            self._on_outputs(message)
        elif isinstance(message, PhaseReport):
            if rank == 0:  # the others do the same at the same time
                self._on_phase(message)
        elif isinstance(message, Failed):
            sentence = f"rank {rank}: {message.message}" if self._size > 1 else message.message
            self._lose(rank, Loss(sentence, message.blamed_rank))
        elif isinstance(message, AdapterLoaded):
            answer = self._answers.pop((message.id, rank), None)
            if answer is not None and not answer.done():
                answer.set_result(message.error)
        elif isinstance(message, Ready):
            # Here, not there: behind the lines about what the start was at.
            logger.info("%s: ready", message.process or f"rank {rank}")
            self._infos[rank] = message.info
            if len(self._infos) == self._size:
                self._all_ready.set()

    def _lose(self, rank: int, loss: Loss) -> None:
        known = self._losses.get(rank)
        if self._stopping or (known and not loss.of_host):
            return
        self._losses[rank] = loss
        self._note_loss()
        if not known and len(self._losses) == 1:
            self._keep(self._explain(), "the search for a loss's cause")

    def _keep(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Runs a task without which the group can't be: its failure is the group's loss."""
        self._tasks.append(background(work, what, self._end))

    def _end(self, reason: str) -> None:
        self._conclude(Loss(reason))

    def _conclude(self, loss: Loss) -> None:
        self._note_loss()
        if not self._lost.done():
            self._lost.set_result(loss)

    async def _explain(self) -> None:
        """Waits a moment for the cause: the first news may come from a rank that only missed
        another.
        """
        if self._size > 1:
            await asyncio.sleep(CAUSE_SECONDS)
        losses = list(self._losses.values())
        # "Rank 0: rank 1 has died" says less than what rank 1 died of, and the ranks of a host that
        # is out of reach may do so for no other reason.
        causes = [loss for loss in losses if loss.of_host]
        causes += [loss for loss in losses if loss.blamed_rank not in self._losses]
        self._conclude((causes or losses)[0])

    def _describe(self, rank: int) -> str:
        return "the engine process" if self._size == 1 else f"the process of rank {rank}"
