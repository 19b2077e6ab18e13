"""Replica: one of several equal engines."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from minisgl.engine.client import EngineClient
from minisgl.engine.served_model import ServedModel
from minisgl.engine.site import Lot


@dataclass(eq=False)
class Replica:
    """One of the engines."""

    number: int
    lot: Lot
    model: ServedModel  # of its engine
    engine: EngineClient = field(init=False)
    failure: str = ""  # why its first start failed; "": it didn't
    leaving: bool = False  # it gets nothing new any more, or not yet
    launch: asyncio.Task[None] | None = None
