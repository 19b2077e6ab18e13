"""All replicas are replaced, one after the other, by replicas with another model revision.

A stream has tokens of one revision only. It goes on at another replica of its revision while there
is one; at the last of them it has a limit to end, as where that one dies and starts again with the
same revision meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from minisgl.engine.api import EngineStartError
from minisgl.engine.change import REPORT_SECONDS, Change, empty_replica, start_replica
from minisgl.engine.placement import NoRoom
from minisgl.engine.replica import Replica
from minisgl.engine.replicas import Replicas
from minisgl.engine.served_model import ServedModel
from minisgl.ipc.messages import EngineInfo

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Roll:
    """What replaces all replicas, of which none comes or goes otherwise meanwhile."""

    change: Change
    replicas: Replicas
    model: ServedModel
    limit: float  # seconds that streams have where no other replica can go on with them

    async def run(self) -> str:
        """Returns why it stopped; "" where all are replaced, and others will begin with the new
        model. One that can't be replaced stays as it was, and so do those after it.
        """
        members = self.replicas.members
        for done, replica in enumerate(members):
            if reason := await self._replace(replica):
                kept = (
                    f"{done} of {len(members)} replicas are replaced, the others stay as they are"
                )
                return f"replica {replica.number} can't be replaced: {reason}; {kept}"
        self.replicas.model = self.model
        return ""

    async def _replace(self, old: Replica) -> str:
        """Returns why it failed."""
        replicas, change = self.replicas, self.change
        change.number = old.number
        while True:
            if replicas.state in ("draining", "failed"):
                return "the server is ending"
            expected = replicas.info
            served = replicas.others_serve(old)
            try:
                # Where nobody else serves, a place is worth waiting for.
                new = replicas.begin(self.model, at_once=served)
            except NoRoom as error:
                if served:
                    return await self._replace_in_place(old, expected)
                if not replicas.others_may_serve(old):
                    return f"no other one serves, and there is no room for one beside it: {error}"
            else:
                return await self._replace_by(new, old, expected)
            change.say("waiting", reason="no other replica serves now")
            await asyncio.sleep(REPORT_SECONDS)

    async def _replace_by(self, new: Replica, old: Replica, expected: EngineInfo) -> str:
        """Starts a new one beside it first."""
        replicas, change = self.replicas, self.change
        replicas.retire(new)  # until it has started and is what it should be
        change.number = new.number
        if reason := await self._start(new, expected):
            await new.engine.close()
            replicas.forget(new)
            return reason
        change.number = old.number
        replicas.retire(old)
        await empty_replica(change, replicas, old, 0.0, self.limit)
        replicas.forget(old)
        change.say("removed")
        return ""

    async def _replace_in_place(self, old: Replica, expected: EngineInfo) -> str:
        """Ends it first: the others serve meanwhile."""
        replicas, change, model = self.replicas, self.change, old.model
        replicas.retire(old)
        await empty_replica(change, replicas, old, 0.0, self.limit)
        replicas.renew(old, self.model)
        if not (reason := await self._start(old, expected)):
            return ""
        await old.engine.close()
        replicas.renew(old, model)
        old.leaving = False
        try:
            await start_replica(change, replicas, old)
            change.say("ready", model=model.name, revision=model.revision)
        except EngineStartError as error:
            await replicas.start_later(old, str(error))
        return reason

    async def _start(self, replica: Replica, expected: EngineInfo) -> str:
        """Starts one with the new model, and lets it serve. Returns why it can't."""
        try:
            await start_replica(self.change, self.replicas, replica)
            reason = misfit(replica.engine.info, expected)
        except EngineStartError as error:
            reason = str(error)
        except Exception as error:
            logger.exception("unexpected error while replica %d started", replica.number)
            reason = f"unexpected error while starting: {error!r}"
        if reason:
            logger.error("replica %d can't serve %s: %s", replica.number, self.model.name, reason)
            return reason
        self.replicas.admit(replica)
        self.change.say("ready", model=self.model.name, revision=self.model.revision)
        return ""


def misfit(info: EngineInfo, expected: EngineInfo) -> str:
    """Why an engine can't serve what the others were asked for; "" where it can."""
    if info.vocab_size != expected.vocab_size:
        return f"its vocabulary has {info.vocab_size} tokens, not {expected.vocab_size}"
    if info.max_model_len < expected.max_model_len:
        return (
            f"its longest request has {info.max_model_len} tokens, fewer than the "
            f"{expected.max_model_len} that are served"
        )
    return ""
