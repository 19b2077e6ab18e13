"""Replicas are added, removed, started anew and replaced while they serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from minisgl.engine.api import EngineStartError, ReplicaRefused, ReplicaUnknown
from minisgl.engine.change import Change, empty_replica, start_replica
from minisgl.engine.replica import Replica
from minisgl.engine.replicas import Replicas
from minisgl.engine.rolling import Roll
from minisgl.engine.served_model import ServedModel
from minisgl.ipc.messages import NamedModel
from minisgl.tasks import background

logger = logging.getLogger(__name__)


class Successors(Protocol):
    """Models that may take the place of the one that is served."""

    async def find(self, named: NamedModel, say: Callable[[str], None]) -> ServedModel:
        """Finds or downloads it; `say` hears how far it is. ReplicaRefused where there is none, or
        its requests would not be those of the one that is served.
        """

    async def adopt(self, model: ServedModel) -> None:
        """All replicas serve it now."""


class Changes:
    """What may be done to replicas. Each begins at once, or is refused at once (ReplicaRefused, and
    ReplicaUnknown for a number that nobody has), and goes on in a task of its own.
    """

    def __init__(self, replicas: Replicas, successors: Successors) -> None:
        self.replicas = replicas
        self._successors = successors
        self._tasks: dict[Change, asyncio.Task[None]] = {}
        self._roll: Change | None = None  # the replacement of all that is under way
        self._rolling = False  # it has found its model

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

    def replace(self, named: NamedModel, limit: float) -> Change:
        """All replicas are replaced, one after the other, by some with this model, once it has been
        found and fits. Streams have `limit` seconds to end where no other replica of their own
        model can go on with them.
        """
        self._check_open()
        if self._roll is not None:
            raise ReplicaRefused("all replicas are being replaced already")
        if self.replicas.state == "starting":
            raise ReplicaRefused("the server is still starting: there is nothing to replace")
        self._roll = change = self._begin(None, lambda change: self._replace(change, named, limit))
        return change

    async def close(self) -> None:
        """What is under way is left where it is: the replicas are closed next."""
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    def _check_open(self) -> None:
        if self.replicas.state in ("draining", "failed"):
            raise ReplicaRefused("the server is ending: its replicas stay as they are")
        if self._rolling:
            raise ReplicaRefused("all replicas are being replaced: nothing else changes meanwhile")

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
        self, replica: Replica | None, work: Callable[[Change], Coroutine[Any, Any, None]]
    ) -> Change:
        change = Change(None if replica is None else replica.number)

        def fail(reason: str) -> None:
            change.say("failed", reason=reason)

        async def run() -> None:
            try:
                await work(change)
            finally:
                self._tasks.pop(change, None)
                # After the failure of the task, if it is one, has been told.
                asyncio.get_running_loop().call_soon(change.end)

        what = "the change of all replicas" if replica is None else f"a change of {replica.number}"
        self._tasks[change] = background(run(), what, fail)
        return change

    async def _add(self, change: Change, replica: Replica) -> None:
        logger.info("replica %d is added: %s", replica.number, replica.lot)
        try:
            await start_replica(change, self.replicas, replica)
            change.say("ready")
        except EngineStartError as error:
            logger.error("replica %d can't be added: %s", replica.number, error)
            self.replicas.retire(replica)
            await replica.engine.close()
            self.replicas.forget(replica)
            change.say("failed", reason=str(error))

    async def _remove(self, change: Change, replica: Replica, drain: float) -> None:
        await empty_replica(change, self.replicas, replica, drain)
        self.replicas.forget(replica)
        logger.info("replica %d was removed", replica.number)
        change.say("removed")

    async def _restart(self, change: Change, replica: Replica, drain: float) -> None:
        await empty_replica(change, self.replicas, replica, drain)
        self.replicas.renew(replica, replica.model)
        replica.leaving = False
        try:
            await start_replica(change, self.replicas, replica)
            change.say("ready")
        except EngineStartError as error:
            change.say("failed", reason=str(error))
            await self.replicas.start_later(replica, str(error))

    async def _replace(self, change: Change, named: NamedModel, limit: float) -> None:
        def search(**phase: str) -> None:
            change.say("searching", model=named.model, revision=named.revision, **phase)

        search()
        try:
            try:
                model = await self._successors.find(named, lambda phase: search(phase=phase))
            except ReplicaRefused as error:
                change.say("failed", reason=f"{error}; nothing has changed")
                return
            self._rolling = True
            await self._settle(change)
            logger.info("all replicas are replaced by some with %s at %s", model.name, model.path)
            reason = await Roll(change, self.replicas, model, limit).run()
            change.number = None
            if reason:
                logger.error("%s", reason)
                change.say("failed", reason=reason)
                return
            await self._successors.adopt(model)
            logger.info("all replicas serve %s at %s", model.name, model.path)
            change.say("replaced", model=model.name, revision=model.revision)
        finally:
            self._roll, self._rolling = None, False

    async def _settle(self, change: Change) -> None:
        """Waits for changes and first starts that are under way."""
        launches = (one.launch for one in self.replicas.members if one.launch is not None)
        others = [task for one, task in self._tasks.items() if one is not change]
        if pending := [task for task in (*others, *launches) if not task.done()]:
            change.say("waiting", reason="other changes are under way")
            await asyncio.wait(pending)
