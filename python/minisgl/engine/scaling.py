"""As many replicas as the requests need, between two bounds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from minisgl.engine.api import ReplicaFigures, ReplicaRefused, ReplicaUnknown
from minisgl.engine.change import Change
from minisgl.engine.changes import Changes

LOOK_SECONDS = 1.0  # between two looks at the replicas
LOOKS_BEFORE_MORE = 5  # in a row at which all had too much to do, and one is added
LOOKS_BEFORE_LESS = 120  # in a row at which one less would have had room to spare, and it goes
LOOKS_AFTER_REFUSAL = 30  # until one more is asked for again
FULL = 0.9  # share of a KV cache in use
SPARE = 0.5  # share of what the others could do at most, where one is to go

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bounds:
    """How many replicas there may be, and seconds that the requests of one that goes have."""

    least: int
    most: int
    drain: float


def usage(one: ReplicaFigures) -> float:
    """Share of a replica's KV cache that requests use. An idle one has none in use, whatever its
    last step says.
    """
    return one.stats.kv_cache_usage if one.num_live else 0.0


def are_full(ready: Sequence[ReplicaFigures]) -> bool:
    """Whether requests wait at each, or could soon."""
    return all(one.num_live and (one.stats.num_waiting or usage(one) >= FULL) for one in ready)


def have_spare(ready: Sequence[ReplicaFigures], max_running: int) -> bool:
    """Whether one less could do all of it easily."""
    rest = (len(ready) - 1) * SPARE
    live = sum(one.num_live for one in ready)
    return live <= rest * max_running and sum(map(usage, ready)) <= rest


class Scaler:
    """Adds and removes replicas, one after the other."""

    def __init__(self, changes: Changes, bounds: Bounds) -> None:
        self._changes = changes
        self._bounds = bounds
        self._full_looks = 0
        self._spare_looks = 0
        self._pause = 0  # looks

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if change := self.look():
                async for event in change.events():
                    if event["state"] == "failed":
                        self._pause = LOOKS_AFTER_REFUSAL

    def look(self) -> Change | None:
        """One look, and what is begun because of it."""
        replicas = self._changes.replicas
        everybody = replicas.replicas
        ready = [one for one in everybody if one.state == "ready"]
        self._pause = max(0, self._pause - 1)
        is_settled = bool(ready) and len(ready) == len(everybody)
        is_full = is_settled and are_full(ready)
        self._full_looks = self._full_looks + 1 if is_full else 0
        has_spare = is_settled and have_spare(ready, replicas.info.max_running)
        self._spare_looks = self._spare_looks + 1 if has_spare else 0
        if len(everybody) < self._bounds.least:
            return self._add(f"there are {len(everybody)} of --min-replicas {self._bounds.least}")
        if self._full_looks >= LOOKS_BEFORE_MORE and len(everybody) < self._bounds.most:
            return self._add(f"all replicas ({len(ready)}) have too much to do")
        if self._spare_looks >= LOOKS_BEFORE_LESS and len(everybody) > self._bounds.least:
            return self._remove(ready)
        return None

    def _add(self, why: str) -> Change | None:
        if self._pause:
            return None
        try:
            change = self._changes.add()
        except ReplicaRefused as error:
            self._pause = LOOKS_AFTER_REFUSAL
            logger.warning("no replica can be added, though %s: %s", why, error)
            return None
        self._full_looks = 0
        logger.info("replica %s is added because %s", change.number, why)
        return change

    def _remove(self, ready: Sequence[ReplicaFigures]) -> Change | None:
        self._spare_looks = 0
        one = min(ready, key=lambda one: (one.num_live, -one.number))
        try:
            change = self._changes.remove(one.number, self._bounds.drain)
        except (ReplicaRefused, ReplicaUnknown):  # somebody was faster
            return None
        logger.info("replica %d is removed because the others have room to spare", one.number)
        return change
