"""Tells when a rank is lost though its process runs: it is silent, or works without progress."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from minisgl.ipc.messages import ALIVE_SECONDS, Alive, FromRank, PhaseReport

TICK_SECONDS = 0.5
SILENT_TICKS = 14  # without a word from a rank that has spoken, and it is lost
MUTE_TICKS = 60  # without a first word
# Ranks that wait for one that is stuck say so themselves, and name it, at the step timeout. The
# server says less, so it waits longer.
GROUP_GRACE_SECONDS = 3.0


@dataclass
class _Seen:
    """What is known of a rank."""

    has_spoken: bool = False
    silent_ticks: int = 0  # since its last word
    working: bool = False  # whether its latest sign of life says so
    done: int = 0  # its progress
    still_signs: int = 0  # signs of life in a row that tell of no progress since the one before


class RankWatch:
    """Hears what ranks say, and tells `lose` of a rank that is lost and why ("made no progress for
    30 s ...").

    Time is not read from a clock. Silence is counted in ticks of this process: where it was
    stopped, too, nobody is late. Progress is counted in signs of life of the rank: where it was
    stopped, its engine was, too.
    """

    def __init__(
        self, ranks: Iterable[int], step_timeout: float, lose: Callable[[int, str], None]
    ) -> None:
        """`step_timeout`: seconds that a rank with work may go on without progress."""
        self._seen = {rank: _Seen() for rank in ranks}
        self._step_timeout = step_timeout
        self._grace = GROUP_GRACE_SECONDS if len(self._seen) > 1 else 0.0
        self._lose = lose

    def hear(self, rank: int, message: FromRank) -> None:
        """Notes a message of a rank."""
        seen = self._seen[rank]
        seen.silent_ticks = 0
        # What happens before its process is there, others tell of it.
        seen.has_spoken |= not isinstance(message, PhaseReport)
        if not isinstance(message, Alive):
            return
        # What was idle at the sign before may have begun just now.
        is_still = message.working and seen.working and message.done == seen.done
        seen.working, seen.done = message.working, message.done
        seen.still_signs = seen.still_signs + 1 if is_still else 0
        if seen.still_signs * ALIVE_SECONDS >= self._step_timeout + self._grace:
            self._lose(
                rank,
                f"made no progress for {self._step_timeout:g} s with work to do (--step-timeout)",
            )

    def tick(self) -> None:
        """Notes that TICK_SECONDS have passed."""
        for rank, seen in self._seen.items():
            seen.silent_ticks += 1
            limit = SILENT_TICKS if seen.has_spoken else MUTE_TICKS
            if seen.silent_ticks > limit:
                self._lose(rank, f"gave no sign of life for {limit * TICK_SECONDS:g} s")

    async def run(self) -> None:
        """Ticks until it is cancelled."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.tick()
