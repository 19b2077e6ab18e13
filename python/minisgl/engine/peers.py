"""What an engine that is one of several has to do with the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minisgl.engine.admission import Admission
from minisgl.engine.live_requests import StreamWatch


@dataclass(frozen=True)
class Peers:
    """Who is told what happens to an engine, and who goes on when it doesn't. By default it is
    alone.
    """

    name: str = "the engine"  # what log lines call it
    admission: Admission | None = None  # of all together
    watch: StreamWatch | None = None  # how its streams get on
    on_ready: Callable[[], None] = lambda: None  # it serves, for the first time or again
    # The first news of its death: its live requests may be handed over now. None: they wait for
    # the next engine.
    on_loss: Callable[[], object] | None = None
    # It has failed once more than often enough in a row, and is tried at longer intervals.
    on_exhausted: Callable[[], object] = lambda: None
    on_failed: Callable[[], object] = lambda: None  # it is not started again; its requests end next
    # Whether others serve, or haven't failed too often yet: then this one is tried for ever.
    others_may_serve: Callable[[], bool] = lambda: False


ALONE = Peers()
