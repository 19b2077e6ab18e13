"""Replicas are added, removed and started anew while they serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

from minisgl.engine.api import EngineStartError, ReplicaRefused, ReplicaUnknown
from minisgl.engine.replicas import Replica, Replicas
from minisgl.tasks import background

REPORT_SECONDS = 0.5  # between two looks at how a change gets on

logger = logging.getLogger(__name__)

Event = Mapping[str, Any]


class Change:
    """Something that is done to a replica, whoever listens, and how it gets on."""

    def __init__(self, number: int) -> None:
        self.number = number  # the replica's
        self._events: list[Event] = []
        self._over = False
        self._news = asyncio.Event()

    def say(self, state: str, **more: Any) -> None:
        """One event; the same one isn't said twice in a row."""
        event = {"replica": self.number, "state": state, **more}
        if not self._events or self._events[-1] != event:
            self._events.append(event)
            self._news.set()

    def end(self) -> None:
        """There are no more events."""
        self._over = True
        self._news.set()

    async def events(self) -> AsyncIterator[Event]:
        """All events from the first on, as they come, to the end. For one listener."""
        told = 0
        while True:
            self._news.clear()
            while told < len(self._events):
                told += 1
                yield self._events[told - 1]
            if self._over:
                return
            await self._news.wait()


class Changes:
    """What may be done to replicas. Each begins at once, or is refused at once (ReplicaRefused, and
    ReplicaUnknown for a number that nobody has), and goes on in a task of its own.
    """

    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas
        self._tasks: dict[Change, asyncio.Task[None]] = {}

    def add(self) -> Change:
        """One more replica. NoRoom, which is a ReplicaRefused, where nothing is left for it."""
        self._check_open()
        replica = self.replicas.begin()
        return self._begin(replica, lambda change: self._add(change, replica))

    def remove(self, number: int, drain: float) -> Change:
        """One replica less. Its streams have `drain` seconds to end there, and go on elsewhere."""
        replica = self._leave(number, "removed")
        return self._begin(replica, lambda change: self._remove(change, replica, drain))

    def restart(self, number: int, drain: float) -> Change:
        """A replica is started anew; its streams are treated as in remove()."""
        replica = self._leave(number, "started again")
        return self._begin(replica, lambda change: self._restart(change, replica, drain))

    async def close(self) -> None:
        """What is under way is left where it is: the replicas are closed next."""
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    def _check_open(self) -> None:
        if self.replicas.state in ("draining", "failed"):
            raise ReplicaRefused("the server is ending: its replicas stay as they are")

    def _leave(self, number: int, what: str) -> Replica:
        self._check_open()
        replicas = self.replicas
        replica = next((one for one in replicas.members if one.number == number), None)
        if replica is None:
            raise ReplicaUnknown(f"there is no replica {number}")
        launching = replica.launch is not None and not replica.launch.done()
        if launching or any(change.number == number for change in self._tasks):
            raise ReplicaRefused(f"replica {number} is being added, started or removed already")
        if not replicas.others_serve(replica):
            raise ReplicaRefused(
                f"replica {number} can't be {what}: no other one serves, which its requests could "
                "go on at"
            )
        replicas.retire(replica)
        return replica

    def _begin(
        self, replica: Replica, work: Callable[[Change], Coroutine[Any, Any, None]]
    ) -> Change:
        change = Change(replica.number)

        def fail(reason: str) -> None:
            change.say("failed", reason=reason)

        async def run() -> None:
            try:
                await work(change)
            finally:
                self._tasks.pop(change, None)
                # After the failure of the task, if it is one, has been told.
                asyncio.get_running_loop().call_soon(change.end)

        self._tasks[change] = background(run(), f"a change of replica {replica.number}", fail)
        return change

    async def _add(self, change: Change, replica: Replica) -> None:
        logger.info("replica %d is added: %s", replica.number, replica.lot)
        try:
            await self._start(change, replica)
        except EngineStartError as error:
            logger.error("replica %d can't be added: %s", replica.number, error)
            self.replicas.retire(replica)
            await replica.engine.close()
            self.replicas.forget(replica)
            change.say("failed", reason=str(error))

    async def _remove(self, change: Change, replica: Replica, drain: float) -> None:
        await self._empty(change, replica, drain)
        self.replicas.forget(replica)
        logger.info("replica %d was removed", replica.number)
        change.say("removed")

    async def _restart(self, change: Change, replica: Replica, drain: float) -> None:
        await self._empty(change, replica, drain)
        self.replicas.renew(replica)
        replica.leaving = False
        try:
            await self._start(change, replica)
        except EngineStartError as error:
            change.say("failed", reason=str(error))
            await self.replicas.start_later(replica, str(error))

    async def _start(self, change: Change, replica: Replica) -> None:
        change.say("starting", place=str(replica.lot))
        start = asyncio.create_task(self.replicas.start_engine(replica))
        try:
            while not (await asyncio.wait({start}, timeout=REPORT_SECONDS))[0]:
                change.say("starting", phase=replica.engine.phase)
            start.result()
        finally:
            start.cancel()
        change.say("ready")

    async def _empty(self, change: Change, replica: Replica, drain: float) -> None:
        """Until none of its requests is live there; then its engine is closed."""
        logger.info(
            "replica %d is drained: live requests (%d) have %g s to end there",
            replica.number,
            replica.engine.num_live,
            drain,
        )
        loop = asyncio.get_running_loop()
        end = loop.time() + drain
        moved = 0
        while True:
            left = end - loop.time()
            if left <= 0:
                moved += self.replicas.evacuate(replica)
                left = REPORT_SECONDS  # for what nobody else can go on with
            live = sum(not stream.finished for stream in replica.engine.requests.streams)
            change.say("draining", live=live, moved=moved)
            if not live:
                break
            await replica.engine.requests.wait_idle(min(left, REPORT_SECONDS))
        await replica.engine.close()
