"""A change of a replica while others serve, and the two steps that all of them are made of."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Mapping
from typing import Any

from minisgl.engine.replica import Replica
from minisgl.engine.replicas import Replicas

REPORT_SECONDS = 0.5  # between two looks at how a change gets on

logger = logging.getLogger(__name__)

Event = Mapping[str, Any]


class Change:
    """Something that is done to a replica or, one after the other, to all, whoever listens, and how
    it gets on.
    """

    def __init__(self, number: int | None) -> None:
        self.number = number  # of the replica that it is about now; None: all
        self._events: list[Event] = []
        self._over = False
        self._news = asyncio.Event()

    def say(self, state: str, **more: Any) -> None:
        """One event; the same one isn't said twice in a row."""
        about = {} if self.number is None else {"replica": self.number}
        event = {**about, "state": state, **more}
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


async def start_replica(change: Change, replicas: Replicas, replica: Replica) -> None:
    """Starts its engine. Raises EngineStartError."""
    change.say("starting", place=str(replica.lot))
    start = asyncio.create_task(replicas.start_engine(replica))
    try:
        while not (await asyncio.wait({start}, timeout=REPORT_SECONDS))[0]:
            change.say("starting", phase=replica.engine.phase)
        start.result()
    finally:
        start.cancel()


async def empty_replica(
    change: Change, replicas: Replicas, replica: Replica, drain: float, limit: float = math.inf
) -> None:
    """Until none of its requests is live there; then its engine is closed. They go on elsewhere
    after `drain` seconds, as far as they can; those that are still there after `limit` seconds end
    with an error.
    """
    logger.info(
        "replica %d is drained: live requests (%d) have %g s to end there",
        replica.number,
        replica.engine.num_live,
        max(drain, 0.0 if math.isinf(limit) else limit),
    )
    loop = asyncio.get_running_loop()
    begin = loop.time()
    moved = 0
    while True:
        now = loop.time() - begin
        if now >= drain:
            moved += replicas.evacuate(replica)
        if now >= limit:
            replica.engine.requests.give_up("replaced", f"it did not end within {limit:g} s")
        live = sum(not stream.finished for stream in replica.engine.requests.streams)
        change.say("draining", live=live, moved=moved)
        if not live:
            break
        left = (point - now for point in (drain, limit, now + REPORT_SECONDS) if point > now)
        await replica.engine.requests.wait_idle(min(left))
    await replica.engine.close()
