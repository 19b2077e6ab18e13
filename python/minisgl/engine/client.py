"""The engine as the server's event loop sees it: submit, abort, streams of outputs, and a rank that
is kept alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from minisgl.engine.stream import TokenStream, make_request
from minisgl.ipc.messages import (
    Abort,
    EngineInfo,
    EngineOptions,
    EngineStats,
    ErrorCode,
    Failed,
    FromRank,
    Output,
    PhaseReport,
    Ready,
    Shutdown,
    StepOutputs,
    decode_from_rank,
)
from minisgl.ipc.process import ChildProcess, describe_exit, python_command

if TYPE_CHECKING:
    from minisgl.sampling_params import SamplingParams

State = Literal["starting", "ready", "restarting", "draining", "failed"]
LAST_WORDS_SECONDS = 0.5  # for messages of a rank that has ended already
ABORT_SECONDS = 2.0  # for the engine to confirm the aborts at the end of a drain

logger = logging.getLogger(__name__)

Rank = ChildProcess[FromRank]


class EngineBusy(Exception):  # noqa: N818
    """The queue is full: try again later (HTTP 429). The sentence is meant for the client."""


class EngineUnavailable(Exception):  # noqa: N818
    """No engine now: starting, restarting, draining or failed (HTTP 503). The sentence is meant for
    the client.
    """


class EngineStartError(Exception):
    """The engine could not be started. The sentence is meant for the screen."""


@dataclass(frozen=True)
class RestartPolicy:
    """When and how often a rank that died is started again."""

    max_failures: int = 5  # in a row; one more and the engine has failed
    first_delay: float = 0.5  # seconds, doubled at each failure
    max_delay: float = 10.0
    healthy_seconds: float = 60.0  # a rank that was ready that long starts the count anew


class EngineClient:
    """One engine rank and its live requests. All methods belong to the event loop that called
    start().
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        max_waiting: int = 1024,
        command: Sequence[str] | None = None,
        restart: RestartPolicy | None = None,
        on_phase: Callable[[PhaseReport], None] | None = None,
    ) -> None:
        """`max_waiting`: requests taken beyond the running ones. `command`: the rank program (for
        tests).
        """
        self._options = options
        self._max_waiting = max_waiting
        self._command = tuple(command or python_command("minisgl.engine.rank"))
        self._restart = restart or RestartPolicy()
        self._on_phase = on_phase or (lambda report: None)
        self._rank: Rank | None = None
        self._live: dict[int, TokenStream] = {}
        self._next_id = 0
        self._info: EngineInfo | None = None
        self._state: State = "starting"
        self._phase = "starting the process"
        self._serving = False  # the rank is ready and reads messages
        self._supervisor: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # set whenever a request or the engine ended
        self.failure = ""  # why the state is "failed"
        self.num_restarts = 0
        self.stats = EngineStats()

    # --- what the server asks

    @property
    def state(self) -> State:
        return self._state

    @property
    def info(self) -> EngineInfo:
        """What was loaded and chosen. EngineUnavailable before the first start has ended."""
        if self._info is None:
            raise EngineUnavailable("the model is still loading")
        return self._info

    @property
    def num_live(self) -> int:
        """Requests in the engine, waiting ones included."""
        return len(self._live)

    def submit(
        self, prompt_ids: list[int], params: SamplingParams, end_ids: Sequence[int] = ()
    ) -> TokenStream:
        """Queues one request (params.n is the caller's matter); make_request explains `end_ids`.

        Raises ValueError for a request that can't be served, EngineBusy, EngineUnavailable.
        """
        rank = self._require_ready()
        info = self.info
        if len(self._live) >= info.max_running + self._max_waiting:
            raise EngineBusy(f"{len(self._live)} requests are waiting or running; try again later")
        request_id = self._next_id
        request = make_request(request_id, prompt_ids, params, info, end_ids)
        stream = TokenStream(request, params, self._abort)
        if not rank.send(request):
            raise EngineUnavailable("the engine is restarting; try again later")
        self._next_id += 1
        self._live[request_id] = stream
        return stream

    def _require_ready(self) -> Rank:
        sentences = {
            "starting": "the model is still loading",
            "restarting": "the engine is restarting; try again later",
            "draining": "the server is shutting down",
            "failed": "the engine has failed",
        }
        if self._state != "ready" or self._rank is None:
            raise EngineUnavailable(sentences.get(self._state, sentences["restarting"]))
        return self._rank

    def _abort(self, request_id: int) -> None:
        if request_id in self._live and self._rank is not None:
            self._rank.send(Abort([request_id]))

    # --- life

    async def start(self, timeout: float) -> EngineInfo:
        """Starts the rank and waits until it is ready. Raises EngineStartError; close() is due in
        any case.
        """
        try:
            info = await asyncio.wait_for(self._start_rank(), timeout)
        except asyncio.TimeoutError:
            raise EngineStartError(
                f"the engine was not ready within {timeout:g} s (it was at: {self._phase}); "
                "a longer --startup-timeout gives it more"
            ) from None
        self._state = "ready"
        self._supervisor = asyncio.create_task(self._supervise(timeout))
        return info

    async def wait_failed(self) -> str:
        """Returns why, once the engine has died too often to be started again."""
        while self._state != "failed":
            self._changed.clear()
            await self._changed.wait()
        return self.failure

    def begin_drain(self) -> None:
        """No new requests from now on; live ones go on."""
        if self._state != "failed":
            self._state = "draining"

    async def drain(self, timeout: float) -> bool:
        """begin_drain(), then waits for live requests to end. Those still there at the end are
        aborted with an error.

        Returns whether none had to be.
        """
        self.begin_drain()
        if await self._wait_idle(timeout):
            return True
        for stream in list(self._live.values()):
            stream.fail("shutting_down", "the server is shutting down")
            self._abort(stream.id)
        await self._wait_idle(ABORT_SECONDS)
        return False

    async def _wait_idle(self, timeout: float) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._until_idle(), timeout)
        return not self._live

    async def _until_idle(self) -> None:
        while self._live:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Ends the rank, in order if it listens; live requests end with an error. Idempotent."""
        self.begin_drain()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
            self._supervisor = None
        self._end_streams("shutting_down", "the server is shutting down")
        if self._rank is not None:
            # A rank that is still loading doesn't read messages.
            await self._rank.stop(Shutdown() if self._serving else None)
            self._rank.close()
            self._rank = None

    def kill(self) -> None:
        """Ends the rank at once, for a process that is about to end itself."""
        if self._rank is not None:
            self._rank.kill()
            self._rank.close()

    # --- the rank

    async def _start_rank(self) -> EngineInfo:
        """Spawns a rank and reads its messages up to Ready. Raises EngineStartError."""
        self._phase = "starting the process"
        try:
            rank: Rank = await ChildProcess.spawn(self._command, decode_from_rank)
        except OSError as error:
            raise EngineStartError(f"the engine process can't be started: {error}") from error
        self._rank = rank
        ready = asyncio.create_task(self._until_ready(rank))
        try:
            return await _first_words(rank, ready)
        finally:
            ready.cancel()

    async def _until_ready(self, rank: Rank) -> EngineInfo:
        await rank.configure(self._options)
        while True:
            message = await rank.receive()
            if isinstance(message, PhaseReport):
                share = f" {100 * message.done // message.total}%" if message.total else ""
                self._phase = message.phase + share
                self._on_phase(message)
            elif isinstance(message, Failed):
                raise EngineStartError(message.message)
            elif isinstance(message, Ready):
                self._info = message.info
                return message.info

    async def _supervise(self, timeout: float) -> None:
        """Serves with one rank after the other until there have been too many failures in a row."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began = loop.time()
            reason = await self._serve_until_death()
            if self._state == "draining":
                return
            if loop.time() - began >= self._restart.healthy_seconds:
                failures = 0
            failures += 1
            while True:
                if failures > self._restart.max_failures:
                    self.failure = reason
                    self._state = "failed"
                    self._changed.set()
                    return
                delay = min(
                    self._restart.first_delay * 2 ** (failures - 1), self._restart.max_delay
                )
                logger.error("the engine died: %s; starting it again in %g s", reason, delay)
                await asyncio.sleep(delay)
                try:
                    await asyncio.wait_for(self._start_rank(), timeout)
                    break
                except (EngineStartError, asyncio.TimeoutError) as error:
                    reason = str(error) or f"not ready within {timeout:g} s"
                    await self._discard_rank()
                    failures += 1
            self.num_restarts += 1
            if self._state == "restarting":
                self._state = "ready"
            logger.info("the engine is ready again")

    async def _serve_until_death(self) -> str:
        """Dispatches the rank's messages until it ends, ends its streams, and returns what it died
        of.
        """
        rank = self._rank
        assert rank is not None
        reader = asyncio.create_task(self._dispatch(rank))
        self._serving = True
        try:
            status = await rank.wait()
            await asyncio.wait({reader}, timeout=LAST_WORDS_SECONDS)
        finally:
            reader.cancel()
        sentence = f"the engine process {describe_exit(status)}"
        if reader.done() and not reader.cancelled() and reader.exception() is None:
            sentence = reader.result()
        if self._state == "ready":
            self._state = "restarting"
        self._end_streams("engine_failure", "the engine failed while it served this request")
        await self._discard_rank()
        return sentence

    async def _dispatch(self, rank: Rank) -> str:
        """Hands outputs to their streams. Returns the sentence of a Failed message."""
        while True:
            message = await rank.receive()
            if isinstance(message, StepOutputs):
                self.stats = message.stats
                for output in message.outputs:
                    self._deliver(output)
            elif isinstance(message, Failed):
                return message.message

    def _deliver(self, output: Output) -> None:
        stream = self._live.get(output.id)
        if stream is None:
            return
        stream.deliver(output)
        if output.finish:
            del self._live[output.id]
            self._changed.set()

    def _end_streams(self, code: ErrorCode, sentence: str) -> None:
        # Replay begins here: each stream has its request and the tokens received, all that a new
        # rank needs to go on.
        for stream in self._live.values():
            stream.fail(code, sentence)
        self._live.clear()
        self._changed.set()

    async def _discard_rank(self) -> None:
        self._serving = False
        rank, self._rank = self._rank, None
        if rank is not None:
            rank.kill()
            await rank.wait()
            rank.close()


async def _first_words(rank: Rank, ready: asyncio.Task[EngineInfo]) -> EngineInfo:
    """The result of `ready`, or EngineStartError when the rank ends without a word."""
    ended = asyncio.create_task(rank.wait())
    try:
        await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await asyncio.wait({ready}, timeout=LAST_WORDS_SECONDS)
        if not ready.done():
            raise EngineStartError(
                f"the engine process {describe_exit(ended.result())} while starting"
            )
        return ready.result()
    finally:
        ended.cancel()
