"""How a rank comes to be: made in a thread of its own, which says what it is at."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from minisgl.cores import format_core_list
from minisgl.ipc.messages import Alive, EngineInfo, PhaseReport, Start
from minisgl.ipc.queues import ZmqAsyncPushQueue
from minisgl.log import start_native_logging
from minisgl.rank.cuda_library import load_cublas
from minisgl.rank.join import CommunicatorError, join_group, settle
from minisgl.tasks import in_daemon_thread

if TYPE_CHECKING:
    from minisgl._native import Progress

PROGRESS_SECONDS = 0.2  # between two reports of a phase

logger = logging.getLogger(__name__)

Outbox = ZmqAsyncPushQueue[Any]


class StartError(Exception):
    """The engine can't start. The sentence is meant for the screen."""

    def __init__(self, sentence: str, blamed_rank: int = -1) -> None:
        """`blamed_rank`: another rank that caused it; -1 for none."""
        super().__init__(sentence)
        self.blamed_rank = blamed_rank


@dataclass
class Life:
    """What signs of life say of the native engine, once it is being made."""

    progress: Progress | None = None

    def sign(self) -> Alive:
        """Waits for no lock and no thread, whatever the engine is doing."""
        if self.progress is None:
            return Alive()
        return Alive(done=self.progress.done, working=self.progress.working)


async def load_rank(start: Start, outbox: Outbox, life: Life, process: str) -> LoadedRank:
    """Constructs and starts the engine or the follower in a thread of its own and reports phases;
    `process` is this process's name. StartError.
    """
    loop = asyncio.get_running_loop()

    def send(report: PhaseReport) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            loop.call_soon_threadsafe(outbox.put_nowait, report)

    reports = _PhaseReporter(send)
    return await in_daemon_thread(lambda: _construct(start, reports, life, process), "load")


@dataclass(frozen=True)
class LoadedRank:
    """An engine (rank 0) or a follower that has started, and what Ready adds to its own info."""

    engine: Any
    comm: str = ""
    cores: str = ""

    def info(self) -> EngineInfo:
        """What Ready says. StartError."""
        try:
            info = {**self.engine.info, "comm": self.comm, "cores": self.cores}
            return msgspec.convert(info, EngineInfo)
        except msgspec.ValidationError as error:
            raise StartError(f"the engine's info is not as expected: {error}") from error


def _construct(start: Start, reports: _PhaseReporter, life: Life, process: str) -> LoadedRank:
    reports.begin("loading the native module")
    try:
        from minisgl import _native
        from minisgl.distributed import set_tp_info
    except ImportError as error:
        raise StartError(
            f"the native module can't be imported: {error}; reinstall minisgl"
        ) from error
    options, place = start.options, start.place
    set_tp_info(place.rank, place.size)
    start_native_logging(_native.set_log, process)
    try:
        load_cublas(_native.build_info()["cuda"])
        arguments = dataclasses.asdict(options)
        comm = ""
        settled, cores = settle(place, options)
        arguments |= settled
        if place.size > 1:
            reports.begin("joining the other ranks")
            group = join_group(place, options, cores)
            arguments |= group.arguments
            comm = group.comm
        make: Any = _native.Engine if place.rank == 0 else _native.Follower
        life.progress = _native.Progress()
        engine = make(**arguments, progress=reports.progress, counter=life.progress)
        reports.begin("starting the engine")
        engine.start()
        reports.end()
        return LoadedRank(engine, comm, format_core_list(cores))
    except _native.RankFailure as error:
        raise StartError(str(error), error.rank) from error
    except (_native.InputError, CommunicatorError) as error:
        raise StartError(str(error)) from error
    except MemoryError as error:
        raise StartError(
            "there is not enough memory for the model and its KV cache; "
            "a smaller --kv-cache-tokens needs less"
        ) from error
    except Exception as error:
        logger.exception("unexpected error while starting")
        raise StartError(f"unexpected error while starting: {error}") from error


_PHASE_NAMES: Mapping[str, str] = {
    "weights": "loading weights",
    "graphs": "recording decode steps",
}


class _PhaseReporter:
    """Turns the native engine's progress calls into reports of phases with their seconds."""

    def __init__(self, send: Callable[[PhaseReport], object]) -> None:
        self._send = send
        self._phase = ""
        self._began = self._reported = 0.0
        self._total = 0

    def begin(self, phase: str) -> None:
        self.end()
        self._phase, self._total = phase, 0
        self._began = self._reported = time.monotonic()
        self._send(PhaseReport(phase=phase))

    def progress(self, phase: str, done: int, total: int) -> None:
        """The engine's callback."""
        phase = _PHASE_NAMES.get(phase, phase)
        if phase != self._phase:
            self.begin(phase)
        self._total = max(total, 0)
        now = time.monotonic()
        if now - self._reported >= PROGRESS_SECONDS:
            self._reported = now
            self._send(PhaseReport(phase=phase, done=max(done, 0), total=self._total))

    def end(self) -> None:
        if self._phase:
            self._send(
                PhaseReport(
                    phase=self._phase,
                    done=self._total,
                    total=self._total,
                    seconds=time.monotonic() - self._began,
                    finished=True,
                )
            )
            self._phase = ""
