"""Several ranks behind the native engine's interface: what LLM has in place of an engine in its own
process.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from minisgl.engine.group import RankGroup
from minisgl.engine.local_ranks import RANK_COMMAND, LocalRanks
from minisgl.ipc.messages import (
    Abort,
    EngineOptions,
    EngineStats,
    PhaseReport,
    StepOutputs,
    Submit,
)
from minisgl.tasks import background

STOP_SECONDS = 15.0  # for the ranks to end


class GroupEngine:
    """The ranks' processes, and an event loop in a thread of its own that talks to them. For one
    thread, like the native engine. Raises EngineStartError.
    """

    def __init__(
        self,
        options: EngineOptions,
        size: int,
        comm: str,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self._outputs: list[tuple[Any, ...]] = []
        self._lock = threading.Lock()  # guards the outputs and the statistics
        self._stats: dict[str, Any] = msgspec.structs.asdict(EngineStats())
        self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._failure = ""
        self._stopped = False
        self._progress = progress
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ranks", daemon=True)
        self._thread.start()
        try:
            self.info = self._wait(self._start(options, size, comm))
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """The ranks have begun already."""

    def stop(self) -> None:
        """Ends the ranks. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        with contextlib.suppress(Exception):
            self._wait(self._end(), STOP_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        os.close(self._event_fd)

    def submit(self, request: dict[str, Any]) -> None:
        """Queues a request: the fields of Submit."""
        self._loop.call_soon_threadsafe(self._group.send, Submit(**request))

    def abort(self, request_id: int) -> None:
        """Ends a request; unknown and finished ids are ignored."""
        self._loop.call_soon_threadsafe(self._group.send, Abort([request_id]))

    def event_fd(self) -> int:
        """A descriptor that is readable while there are outputs, and after a failure."""
        return self._event_fd

    def drain(self) -> list[tuple[Any, ...]]:
        """The outputs that arrived since the last call, as Output's fields."""
        with self._lock:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._event_fd)
            outputs, self._outputs = self._outputs, []
            return outputs

    def stats(self) -> dict[str, Any]:
        """The fields of EngineStats, as of the latest step."""
        return self._stats

    def failure(self) -> str:
        """What the group died of, or ""."""
        return self._failure

    # --- in the loop's thread

    async def _start(self, options: EngineOptions, size: int, comm: str) -> dict[str, Any]:
        self._group = RankGroup(
            options,
            launcher=functools.partial(LocalRanks, RANK_COMMAND),
            size=size,
            comm=comm,
            on_phase=self._show_phase,
            on_outputs=self._take,
        )
        infos = await self._group.start()
        self._watch = background(self._watch_group(), "the watch of the ranks", self._fail)
        return msgspec.structs.asdict(infos[0])

    async def _watch_group(self) -> None:
        self._fail(await self._group.wait_lost())

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._group.kill()
        os.eventfd_write(self._event_fd, 1)

    async def _end(self) -> None:
        if hasattr(self, "_watch"):
            self._watch.cancel()
        await self._group.stop()
        await self._group.close()

    def _show_phase(self, report: PhaseReport) -> None:
        if report.total:
            self._progress(report.phase.removeprefix("loading "), report.done, report.total)

    def _take(self, message: StepOutputs) -> None:
        with self._lock:
            self._stats = msgspec.structs.asdict(message.stats)
            # Of an engine's end failure() says more, a moment later.
            self._outputs += [
                msgspec.structs.astuple(output)
                for output in message.outputs
                if output.error_code != "engine_failure"
            ]
            os.eventfd_write(self._event_fd, 1)

    def _wait(self, work: Coroutine[Any, Any, Any], timeout: float | None = None) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)
