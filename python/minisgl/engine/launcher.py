"""RankLauncher: how the ranks of a group come to be, whatever starts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from minisgl.ipc.messages import EngineOptions, FromRank, PhaseReport, Place


@dataclass(frozen=True)
class RankEvents:
    """Whom a launcher tells what happens to its ranks."""

    message: Callable[[int, FromRank], None]  # a rank said this
    # A rank ended, after its last message, and how, to follow "the process": "was killed by
    # SIGKILL".
    end: Callable[[int, str], None]
    # A rank's process is no more: its last messages may still come, and then `end`.
    gone: Callable[[int], None] = lambda rank: None
    # A host that had these ranks can't be reached, and why: "host 1 was lost ...". They may run.
    host_lost: Callable[[Iterable[int], str], None] = lambda ranks, reason: None
    phase: Callable[[PhaseReport], None] = lambda report: None  # progress before there are ranks


class RankLauncher(Protocol):
    """The ranks of one group, on one host or several: started once, ended together. close() is due
    in any case.
    """

    async def start(self, options: EngineOptions, places: Sequence[Place]) -> None:
        """Starts a rank for each place, in the order of ranks. A place has its rank, size, name and
        `comm`; the launcher adds where it is. Raises OSError.
        """

    def send(self, rank: int, message: Any) -> bool:
        """Puts a message to a rank without waiting; False when it is gone or can't be reached from
        here. Rank 0 always can.
        """

    async def stop(self, farewell: Any | None) -> None:
        """Ends the ranks, in order as far as they listen to the farewell."""

    def kill(self) -> None:
        """Ends the ranks at once and leaves no files, for a process that may itself end next."""

    async def close(self) -> None:
        """Ends what still runs, waits for it and frees everything."""


MakeLauncher = Callable[[RankEvents], RankLauncher]
