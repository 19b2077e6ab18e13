"""An engine rank: one process with the native engine and an asyncio loop around it. `python -m
minisgl.rank.main`.

On rank 0 the loop hands messages to the engine and, at each wake of its eventfd, everything
that the engine has made to the server in one message. The other ranks only follow rank 0, in native
code. Nothing here waits for a step or looks into tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec

from minisgl.ipc.child import ParentLink, run_child
from minisgl.ipc.messages import (
    ALIVE_SECONDS,
    Abort,
    Alive,
    EngineInfo,
    EngineStats,
    Failed,
    Output,
    PhaseReport,
    Ready,
    Shutdown,
    Start,
    StepOutputs,
    Submit,
    ToRank,
    decode_to_rank,
)
from minisgl.ipc.parent_death import die_with_parent
from minisgl.ipc.queues import ZmqAsyncPushQueue
from minisgl.log import start_native_logging
from minisgl.rank.cores import format_core_list
from minisgl.rank.cuda_library import load_cublas
from minisgl.rank.join import CommunicatorError, join_group

if TYPE_CHECKING:
    from minisgl._native import Engine, Follower, Progress

FAILURE_CHECK_SECONDS = (
    1.0  # an engine thread that dies with nothing to report is noticed after that
)
PROGRESS_SECONDS = 0.2  # between two reports of a phase

logger = logging.getLogger(__name__)

Outbox = ZmqAsyncPushQueue[Any]


class StartError(Exception):
    """The engine can't start. The sentence is meant for the screen."""

    def __init__(self, sentence: str, blamed_rank: int = -1) -> None:
        """`blamed_rank`: another rank that caused it; -1 for none."""
        super().__init__(sentence)
        self.blamed_rank = blamed_rank


async def main(link: ParentLink[ToRank]) -> int:
    """Loads, reports ready, serves until told to end. Status 0, or 1 after a Failed message."""
    start = await link.inbox.get()
    if not isinstance(start, Start):
        raise TypeError(f"expected the start first, got {type(start).__name__}")
    life = Life()
    pulse = asyncio.create_task(_show_life(link.outbox, life))
    try:
        loaded = await _load(start, link.outbox, life)
        link.outbox.put_nowait(Ready(_info(loaded)))
        die_with_parent(signal.SIGKILL)  # nothing that it holds is kept outside it
        if start.place.rank == 0:
            failure = await Rank(loaded.engine, link).serve()
        else:
            failure = await follow(loaded.engine)
    except StartError as error:
        failure = Failed(str(error), error.blamed_rank)
    finally:
        pulse.cancel()
    if failure is not None:
        link.outbox.put_nowait(failure)
        return 1
    return 0


@dataclass
class Life:
    """What signs of life say of the native engine, once it is being made."""

    progress: Progress | None = None

    def sign(self) -> Alive:
        """Waits for no lock and no thread, whatever the engine is doing."""
        if self.progress is None:
            return Alive()
        return Alive(done=self.progress.done, working=self.progress.working)


async def _show_life(outbox: Outbox, life: Life) -> None:
    while True:
        outbox.put_nowait(life.sign())
        await asyncio.sleep(ALIVE_SECONDS)


async def follow(follower: Follower) -> Failed | None:
    """Until rank 0 has said that it is over (returns None) or a failure. The server's Shutdown is
    for rank 0 to pass on.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(follower.event_fd(), ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(follower.event_fd())
    return failure_of(follower)


def failure_of(rank: Engine | Follower) -> Failed | None:
    """What the native thread died of, if it did."""
    sentence = rank.failure()
    return Failed(sentence, rank.blamed_rank()) if sentence else None


class Rank:
    """The loop around a started engine."""

    def __init__(self, engine: Engine, link: ParentLink[ToRank]) -> None:
        self._engine = engine
        self._link = link
        self._failed = asyncio.Event()
        self._broken = ""  # why outputs can't be forwarded any more

    async def serve(self) -> Failed | None:
        """Until Shutdown (returns None) or a failure."""
        loop = asyncio.get_running_loop()
        event_fd = self._engine.event_fd()
        loop.add_reader(event_fd, self._forward_outputs)
        tasks = [
            asyncio.create_task(self._obey()),
            asyncio.create_task(self._failed.wait()),
            asyncio.create_task(self._watch_engine()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            loop.remove_reader(event_fd)
        self._forward_outputs()
        failure = Failed(self._broken) if self._broken else failure_of(self._engine)
        self._engine.stop()
        return failure

    async def _obey(self) -> None:
        """Does what the server says until it says Shutdown."""
        while True:
            message = await self._link.inbox.get()
            if isinstance(message, Submit):
                self._submit(message)
            elif isinstance(message, Abort):
                for request_id in message.ids:
                    self._engine.abort(request_id)
            elif isinstance(message, Shutdown):
                return

    def _submit(self, request: Submit) -> None:
        try:
            self._engine.submit(request.engine_fields())
        except Exception as error:  # whatever is wrong with one request must not end the others
            logger.exception("request %d was refused by the engine's binding", request.id)
            self._link.outbox.put_nowait(
                StepOutputs(outputs=[refusal(request.id, str(error))], stats=self._stats())
            )

    def _forward_outputs(self) -> None:
        if self._broken:
            return
        try:
            outputs = self._engine.take_outputs()
            if outputs:
                # Encoded as they are: the tuples have the layout of Output.
                self._link.outbox.put_nowait(
                    StepOutputs(outputs=cast("list[Output]", outputs), stats=self._stats())
                )
        except Exception as error:
            # The tokens are gone: later ones must not follow the gap. The server replays.
            logger.exception("unexpected error while forwarding outputs")
            self._broken = f"unexpected error while forwarding outputs: {error!r}"[:1000]
            asyncio.get_running_loop().remove_reader(self._engine.event_fd())
        if self._broken or self._engine.failure():
            self._failed.set()

    def _stats(self) -> EngineStats:
        return cast(EngineStats, self._engine.stats())  # a dict, encoded like the struct

    async def _watch_engine(self) -> None:
        while not self._engine.failure():  # noqa: ASYNC110 - a native thread sets no asyncio.Event
            await asyncio.sleep(FAILURE_CHECK_SECONDS)


def refusal(request_id: int, reason: str) -> Output:
    """The answer to a request that never got into the engine."""
    return Output(
        request_id, [], "error", "invalid_request", reason[:1000] or "the request is malformed"
    )


def answer_malformed(outbox: Outbox) -> Callable[[bytes], None]:
    """Replies to a malformed message if it can be seen which request it was, so that its stream
    doesn't wait for ever.
    """

    def reply(data: bytes) -> None:
        try:
            content = msgspec.msgpack.decode(data)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return
        request_id = content.get("id") if isinstance(content, dict) else None
        if isinstance(request_id, int) and 0 <= request_id < 2**63:
            output = refusal(request_id, "the request has a value out of range")
            outbox.put_nowait(StepOutputs(outputs=[output], stats=EngineStats()))

    return reply


async def _load(start: Start, outbox: Outbox, life: Life) -> LoadedRank:
    """Constructs and starts the engine or the follower in a thread of its own and reports phases.
    StartError.
    """
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[LoadedRank] = loop.create_future()
    reports = _PhaseReporter(lambda report: loop.call_soon_threadsafe(outbox.put_nowait, report))

    def resolve(result: LoadedRank | None, error: StartError | None) -> None:
        if loaded.done():
            return
        if error is not None:
            loaded.set_exception(error)
        else:
            loaded.set_result(cast("LoadedRank", result))

    def load() -> None:
        result, error = None, None
        try:
            result = _construct(start, reports, life)
        except StartError as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is gone: the process is ending
            loop.call_soon_threadsafe(resolve, result, error)

    threading.Thread(target=load, name="load", daemon=True).start()
    return await loaded


@dataclass(frozen=True)
class LoadedRank:
    """An engine (rank 0) or a follower that has started, and what Ready adds to its own info."""

    engine: Any
    comm: str = ""
    cores: str = ""


def _construct(start: Start, reports: _PhaseReporter, life: Life) -> LoadedRank:
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
    start_native_logging(_native.set_log)
    try:
        load_cublas(_native.build_info()["cuda"])
        arguments = dataclasses.asdict(options)
        comm, cores = "", ""
        if place.size > 1:
            reports.begin("joining the other ranks")
            group = join_group(place, options)
            arguments |= group.arguments
            comm, cores = group.comm, format_core_list(group.cores)
        make: Any = _native.Engine if place.rank == 0 else _native.Follower
        life.progress = _native.Progress()
        engine = make(**arguments, progress=reports.progress, counter=life.progress)
        reports.begin("starting the engine")
        engine.start()
        reports.end()
        return LoadedRank(engine, comm, cores)
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


def _info(loaded: LoadedRank) -> EngineInfo:
    try:
        info = {**loaded.engine.info, "comm": loaded.comm, "cores": loaded.cores}
        return msgspec.convert(info, EngineInfo)
    except msgspec.ValidationError as error:
        raise StartError(f"the engine's info is not as expected: {error}") from error


if __name__ == "__main__":
    run_child(decode_to_rank, main, answer_malformed)
