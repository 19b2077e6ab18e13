"""Replicas: several equal engines as one, whose streams outlive each of them.

The EngineClient of a replica has its streams. When it dies, hangs, is drained or removed, they are
handed over to the others: one operation, by which each stream has one owner at any time, and goes
on from its delivered tokens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from minisgl.engine.adapters import Adapter, AdapterBook
from minisgl.engine.admission import Admission
from minisgl.engine.api import (
    EngineStartError,
    EngineUnavailable,
    PromptShape,
    ReplicaFigures,
    State,
    rank_figures,
)
from minisgl.engine.client import EngineClient
from minisgl.engine.dispatch import Dispatch
from minisgl.engine.figures import sum_stats
from minisgl.engine.live_requests import DIED, StreamWatch
from minisgl.engine.peers import Peers
from minisgl.engine.placement import NoRoom
from minisgl.engine.replica import Replica
from minisgl.engine.router import Router
from minisgl.engine.served_model import ServedModel
from minisgl.engine.site import Lot, Site
from minisgl.ipc.messages import NO_STANDING, EngineInfo, EngineStats, Standing
from minisgl.tasks import background

if TYPE_CHECKING:
    from minisgl.engine.stream import TokenStream
    from minisgl.sampling_params import SamplingParams

logger = logging.getLogger(__name__)


class MakeEngine(Protocol):
    """Makes the engine of a replica."""

    def __call__(self, number: int, lot: Lot, peers: Peers, model: ServedModel) -> EngineClient:
        """Not started yet."""


class Replicas:
    """The EngineApi of several engines on one event loop."""

    def __init__(
        self,
        make_engine: MakeEngine,
        site: Site,
        count: int,
        admission: Admission,
        router: Router,
        model: ServedModel,
        adapters: AdapterBook | None = None,
    ) -> None:
        """`count` replicas at the start; `admission` to all of them together."""
        self.adapters = adapters or AdapterBook()  # that each replica has
        self.model = model  # of replicas that begin from now on
        self._make_engine = make_engine
        self._site = site
        self._count = count
        self._admission = admission
        self._dispatch = Dispatch(router)
        self._watch = StreamWatch(
            router.progressed, self._dispatch.note_end, self._dispatch.relieve, self._exonerate
        )
        self._members: dict[int, Replica] = {}
        self.failure = ""  # as in EngineApi
        self._next_number = 0
        self._info: EngineInfo | None = None  # what all that serve can do
        self.rank_infos: list[EngineInfo] = []  # of each rank of the first that serves
        self._timeout: float | None = None  # seconds for a start
        self._draining = False
        self._on_steps: Callable[[float, int], None] = lambda tokens, steps: None
        self._past_restarts = 0  # of engines that were removed or replaced
        self._ready = asyncio.Event()  # a replica has served
        self._news = asyncio.Event()  # of a start

    # --- what is asked

    @property
    def members(self) -> list[Replica]:
        """All there are, in the order of their numbers."""
        return list(self._members.values())

    @property
    def state(self) -> State:
        """As in EngineApi: ready where at least one is."""
        if self.failure:
            return "failed"
        if self._draining:
            return "draining"
        if self._dispatch.serving:
            return "ready"
        return "restarting" if self._ready.is_set() else "starting"

    @property
    def phase(self) -> str:
        """As in EngineApi, of the first replica that is being started."""
        for one in self.members:
            if phase := one.engine.phase:
                return f"replica {one.number}: {phase}"
        return ""

    @property
    def info(self) -> EngineInfo:
        """As in EngineApi: what a request may ask for, wherever it goes."""
        if self._info is None:
            raise EngineUnavailable("starting")
        return self._info

    @property
    def stats(self) -> EngineStats:
        """As in EngineApi, of all together."""
        return sum_stats([one.engine.stats for one in self.members])

    @property
    def on_steps(self) -> Callable[[float, int], None]:
        """As in EngineApi."""
        return self._on_steps

    @on_steps.setter
    def on_steps(self, hear: Callable[[float, int], None]) -> None:
        self._on_steps = hear
        for one in self.members:
            one.engine.on_steps = hear

    @property
    def replicas(self) -> list[ReplicaFigures]:
        """As in EngineApi."""
        return [self._figures(one) for one in self.members]

    @property
    def num_live(self) -> int:
        """As in EngineApi."""
        return sum(one.engine.num_live for one in self._members.values())

    @property
    def num_restarts(self) -> int:
        """As in EngineApi."""
        return self._past_restarts + sum(one.engine.num_restarts for one in self.members)

    @property
    def num_replaying(self) -> int:
        """As in EngineApi."""
        return sum(one.engine.num_replaying for one in self.members)

    @property
    def waiting_tokens(self) -> int:
        """As in EngineApi."""
        return self._admission.backlog.tokens

    @property
    def retry_after(self) -> int:
        """As in EngineApi."""
        return self._admission.backlog.seconds()

    def refusal(self, prompts: Sequence[PromptShape]) -> str:
        """As in EngineApi."""
        return self._admission.refusal(self.info, prompts)

    def submit(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        end_ids: Sequence[int] = (),
        bad_words: Sequence[list[int]] = (),
        prefix_salt: bytes | None = None,
        standing: Standing = NO_STANDING,
        session: str | None = None,
    ) -> TokenStream:
        """As in EngineApi."""
        return self._admission.submit(
            self,
            prompt_ids,
            params,
            end_ids,
            bad_words,
            prefix_salt,
            standing,
            session,
            self._dispatch.place,
        )

    def abort(self, request_id: int) -> None:
        """As in EngineApi."""
        for one in self.members:
            one.engine.abort(request_id)

    async def load_adapter(self, name: str, path: str) -> None:
        """As in EngineApi."""

        async def tell(adapter: Adapter) -> None:
            await asyncio.gather(*(one.engine.tell_adapter(adapter) for one in self.members))

        await self.adapters.load(name, path, tell, self._forget_adapter)

    def unload_adapter(self, name: str) -> None:
        """As in EngineApi."""

        def is_used(adapter_id: int) -> bool:
            return any(one.engine.requests.have_adapter(adapter_id) for one in self.members)

        self.adapters.unload(name, is_used, self._forget_adapter)

    def _forget_adapter(self, adapter_id: int) -> None:
        for one in self.members:
            one.engine.forget_adapter(adapter_id)

    # --- life

    async def start(self, timeout: float | None) -> EngineInfo:
        """Starts all replicas side by side, each within `timeout` seconds (None: as long as it
        takes), and waits until the first is ready; the others come when they are. Raises
        EngineStartError where none starts; close() is due in any case.
        """
        self._timeout = timeout
        try:
            begun = [self.begin() for _ in range(self._count)]
        except NoRoom as error:
            raise EngineStartError(
                f"--replicas {self._count} is too much for this host: {error}"
            ) from error
        for one in begun:
            logger.info("replica %d: %s", one.number, one.lot)
            one.launch = background(self._launch(one), f"the start of replica {one.number}")
        while not self._ready.is_set():
            if all(one.failure for one in begun):
                raise EngineStartError(begun[0].failure)
            self._news.clear()
            await self._news.wait()
        return self.info

    async def wait_failed(self) -> str:
        """Returns why, once no replica is started again any more."""
        while not self.failure:
            self._news.clear()
            await self._news.wait()
        return self.failure

    async def drain(self, timeout: float) -> bool:
        """As in EngineApi. Streams of a replica that dies meanwhile go on at the others."""
        self._draining = True
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while True:
            left = max(0.0, end - loop.time())
            ended = await asyncio.gather(*(one.engine.drain(left) for one in self.members))
            if not all(ended):
                return False
            if not self.num_live:
                return True

    async def close(self) -> None:
        """Ends all replicas, in order if they listen; live requests end with an error."""
        self._draining = True
        launches = [one.launch for one in self.members if one.launch is not None]
        for launch in launches:
            launch.cancel()
        if launches:
            await asyncio.wait(launches)
        await asyncio.gather(*(one.engine.close() for one in self.members))

    def kill(self) -> None:
        """Ends all ranks at once, for a process that is about to end itself."""
        for one in self.members:
            one.engine.kill()

    # --- members

    def begin(self, model: ServedModel | None = None, *, at_once: bool = False) -> Replica:
        """A new replica, not started yet, with this model (None: that of all that begin now). No
        number is given twice. Raises NoRoom, with `at_once` also where room may have to be waited
        for.
        """
        number = self._next_number
        replica = Replica(number, self._site.take(number, at_once=at_once), model or self.model)
        self._next_number += 1
        self._members[number] = replica
        self._equip(replica)
        return replica

    def renew(self, replica: Replica, model: ServedModel) -> None:
        """A new engine for a replica, not started yet. The one before must have been closed."""
        self._past_restarts += replica.engine.num_restarts
        replica.model = model
        self._equip(replica)

    def _equip(self, replica: Replica) -> None:
        replica.engine = self._make_engine(
            replica.number,
            replica.lot,
            Peers(
                name=f"replica {replica.number}",
                admission=self._admission,
                watch=self._watch,
                on_ready=lambda: self._welcome(replica),
                on_loss=lambda: self.evacuate(replica),
                on_exhausted=lambda: self._let_go(replica),
                on_failed=lambda: self._give_up(replica),
                others_may_serve=lambda: self.others_may_serve(replica),
            ),
            replica.model,
        )
        replica.engine.on_steps = self._on_steps

    async def start_engine(self, replica: Replica) -> None:
        """Starts the engine of a replica. Raises EngineStartError."""
        await replica.engine.start(self._timeout)

    async def start_later(self, replica: Replica, reason: str) -> None:
        """Where start_engine() failed for this reason: tries again, as where a replica died."""
        await replica.engine.start_later(reason, self._timeout)

    def retire(self, replica: Replica) -> None:
        """It gets nothing new any more; what it has stays until evacuate()."""
        replica.leaving = True
        self._unroute(replica)

    def admit(self, replica: Replica) -> None:
        """One that was started while it was `leaving` gets requests from now on."""
        replica.leaving = False
        if replica.engine.serves:  # else it is welcomed once it does
            self._welcome(replica)

    def forget(self, replica: Replica) -> None:
        """The replica, which has been closed, is no more."""
        self._past_restarts += replica.engine.num_restarts
        del self._members[replica.number]
        replica.lot.give_back()

    def others_serve(self, replica: Replica) -> bool:
        """Whether another one takes what this replica would get."""
        return self._dispatch.others_serve(replica)

    def others_may_serve(self, replica: Replica, model: ServedModel | None = None) -> bool:
        """Whether another one does, or hasn't failed too often to be expected to; `model`: only
        those with this one count.
        """
        return any(
            one is not replica
            and not (one.leaving or one.failure or one.engine.exhausted)
            and model in (None, one.model)
            for one in self.members
        )

    def evacuate(self, replica: Replica) -> int:
        """The death, drain or removal of a replica: its streams go on at others, as far as there
        are any of its model; those that have got nothing yet at any. Returns how many did.
        """
        self._unroute(replica)
        moved = self._dispatch.move_all(replica)
        if moved:
            logger.warning("replica %d: %d requests go on elsewhere", replica.number, moved)
        return moved

    # --- who serves

    def _exonerate(self) -> None:
        for one in self.members:
            one.engine.requests.exonerate()

    def _figures(self, replica: Replica) -> ReplicaFigures:
        engine = replica.engine
        state = engine.state
        return ReplicaFigures(
            number=replica.number,
            state="draining" if replica.leaving and state == "ready" else state,
            phase=engine.phase,
            place=str(replica.lot),
            model=replica.model.name,
            revision=replica.model.revision,
            num_live=engine.num_live,
            waiting_tokens=engine.requests.tokens_without_answer,
            num_replaying=engine.num_replaying,
            num_restarts=engine.num_restarts,
            stats=engine.stats,
            chosen=self._dispatch.decisions(replica),
            ranks=rank_figures(engine.rank_infos),
        )

    def _welcome(self, replica: Replica) -> None:
        """It serves: new requests, and those that nobody else could go on with."""
        if not replica.leaving:
            self._dispatch.add(replica)
            serving, all_there_are = len(self._dispatch.serving), len(self._members)
            logger.info("replica %d serves; %d of %d do", replica.number, serving, all_there_are)
            for other in self.members:
                if not self._dispatch.has(other) and not other.leaving:
                    self.evacuate(other)
        self._sum_up()
        self._ready.set()
        self._news.set()

    def _let_go(self, replica: Replica) -> None:
        """It fails again and again. Where no other one may serve its model any more, nobody could
        ever go on with its streams.
        """
        self.evacuate(replica)
        if not self.others_may_serve(replica, replica.model):
            replica.engine.requests.end_all("engine_failure", DIED)

    def _give_up(self, replica: Replica) -> None:
        """It isn't started again. That is the end where no other one may serve."""
        self.evacuate(replica)
        if not self.others_may_serve(replica):
            self.failure = f"replica {replica.number}: {replica.engine.failure}"
        self._news.set()

    def _unroute(self, replica: Replica) -> None:
        if self._dispatch.remove(replica):
            self._sum_up()

    def _sum_up(self) -> None:
        """What all that serve can do; where none does, it stays as it was."""
        if serving := self._dispatch.serving:
            self.rank_infos = serving[0].engine.rank_infos
            infos = [one.engine.info for one in serving]
            self._info = msgspec.structs.replace(
                infos[0],
                max_model_len=min(info.max_model_len for info in infos),
                max_running=sum(info.max_running for info in infos),
            )

    async def _launch(self, replica: Replica) -> None:
        """The first start of a replica, which is tried again once another one serves."""
        try:
            await self.start_engine(replica)
            return
        except EngineStartError as error:
            reason = str(error)
            logger.error("replica %d can't start: %s", replica.number, reason)
        except Exception as error:
            reason = f"unexpected error while starting: {error!r}"
            logger.exception("unexpected error while replica %d started", replica.number)
        replica.failure = reason
        self._news.set()
        await self._ready.wait()
        replica.failure = ""
        await self.start_later(replica, reason)
