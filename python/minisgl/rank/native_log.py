"""What native code has to say, through Python's logging: its levels, its filter and its format."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from minisgl._native import Log

logger = logging.getLogger("minisgl.native")


class NativeLog:
    """Hands on the lines of the native module's log, on a loop, from open() to close()."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._log: Log | None = None

    def open(self, native: ModuleType) -> None:
        """Takes the log over; from any thread, once the module is there."""
        self._log = native.Log()
        self._loop.call_soon_threadsafe(self._loop.add_reader, self._log.event_fd(), self._forward)

    def close(self) -> None:
        """Hands on what waits. What native code says afterwards goes to stderr."""
        if self._log is None:
            return
        self._loop.remove_reader(self._log.event_fd())
        self._forward()
        self._log = None

    def _forward(self) -> None:
        if self._log is None:
            return
        for level, text in self._log.take():
            logger.log(level, "%s", text)
