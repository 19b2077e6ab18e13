"""The engine as the server's event loop sees it: submit, abort, streams of outputs, and ranks that
are kept alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from minisgl.config import STEP_TIMEOUT
from minisgl.engine.group import EngineStartError, RankGroup
from minisgl.engine.nodes import NodeHub
from minisgl.engine.stream import TokenStream, make_request
from minisgl.ipc.messages import (
    Abort,
    EngineInfo,
    EngineOptions,
    EngineStats,
    ErrorCode,
    Output,
    PhaseReport,
    StepOutputs,
)
from minisgl.ipc.process import python_command

if TYPE_CHECKING:
    from minisgl.sampling_params import SamplingParams

State = Literal["starting", "ready", "restarting", "draining", "failed"]
ABORT_SECONDS = 2.0  # for the engine to confirm the aborts at the end of a drain

DIED = "the engine failed while it served this request"

logger = logging.getLogger(__name__)


class EngineBusy(Exception):  # noqa: N818
    """The queue is full: try again later (HTTP 429). The sentence is meant for the client."""


class EngineUnavailable(Exception):  # noqa: N818
    """No engine now: starting, restarting, draining or failed (HTTP 503). The sentence is meant for
    the client.
    """


@dataclass(frozen=True)
class RestartPolicy:
    """When and how often an engine that died is started again."""

    max_failures: int = 5  # in a row; one more and the engine has failed
    first_delay: float = 0.5  # seconds, doubled at each failure
    max_delay: float = 10.0
    healthy_seconds: float = 60.0  # an engine that was ready that long starts the count anew
    max_replays: int = 2  # of a request: what was there at one more death may be its cause


class EngineClient:
    """An engine of one rank or several, and its live requests. All methods belong to the event
    loop that called start().

    When the engine dies, it is started again, and each live request goes on where its stream
    stopped: the new engine gets the prompt and what was delivered of the answer as one prompt.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        size: int = 1,
        comm: str = "auto",
        step_timeout: float = STEP_TIMEOUT,
        max_waiting: int = 1024,
        command: Sequence[str] | None = None,
        restart: RestartPolicy | None = None,
        on_phase: Callable[[PhaseReport], None] | None = None,
    ) -> None:
        """`size` ranks that sum through `comm`. `step_timeout`: seconds that one may work without
        progress. `max_waiting`: requests taken beyond the running ones. `command`: the rank program
        (for tests).
        """
        self._options = options
        self._size = size
        self._comm = comm
        self._step_timeout = step_timeout
        self._max_waiting = max_waiting
        self._command = tuple(command or python_command("minisgl.rank.main"))
        self._restart = restart or RestartPolicy()
        self._on_phase = on_phase or (lambda report: None)
        self._group: RankGroup | None = None
        self._serving = False  # the group has the live requests, and answers
        self._live: dict[int, TokenStream] = {}
        self._next_id = 0
        self._info: EngineInfo | None = None
        self._infos: list[EngineInfo] = []  # by rank
        self._state: State = "starting"
        self._phase = "starting the process"
        self._supervisor: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # set whenever a request or the engine ended
        self.hub: NodeHub | None = None  # the other hosts, set before start()
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
    def rank_infos(self) -> list[EngineInfo]:
        """The same of each rank, in their order."""
        return self._infos

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
        group = self._require_ready()
        info = self.info
        if len(self._live) >= info.max_running + self._max_waiting:
            raise EngineBusy(f"{len(self._live)} requests are waiting or running; try again later")
        request_id = self._next_id
        request = make_request(request_id, prompt_ids, params, info, end_ids)
        stream = TokenStream(request, params, self._abort)
        if not group.send(request):
            raise EngineUnavailable("the engine is restarting; try again later")
        self._next_id += 1
        self._live[request_id] = stream
        return stream

    def _require_ready(self) -> RankGroup:
        sentences = {
            "starting": "the model is still loading",
            "restarting": "the engine is restarting; try again later",
            "draining": "the server is shutting down",
            "failed": "the engine has failed",
        }
        if self._state != "ready" or self._group is None:
            raise EngineUnavailable(sentences.get(self._state, sentences["restarting"]))
        return self._group

    def _abort(self, request_id: int) -> None:
        if request_id not in self._live:
            return
        if not (self._serving and self._group and self._group.send(Abort([request_id]))):
            del self._live[request_id]  # no engine has it, so none would confirm the abort
            self._changed.set()

    # --- life

    async def start(self, timeout: float) -> EngineInfo:
        """Starts the ranks and waits until all are ready. Raises EngineStartError; close() is due
        in any case.
        """
        try:
            info = await asyncio.wait_for(self._start_group(), timeout)
        except asyncio.TimeoutError:
            raise EngineStartError(
                f"the engine was not ready within {timeout:g} s (it was at: {self._phase}); "
                "a longer --startup-timeout gives it more"
            ) from None
        self._state = "ready"
        self._serving = True
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
        """Ends the ranks, in order if they listen; live requests end with an error. Idempotent."""
        self.begin_drain()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
            self._supervisor = None
        self._end_streams("shutting_down", "the server is shutting down")
        if self._group is not None:
            await self._group.stop()
            await self._discard_group()

    def kill(self) -> None:
        """Ends the ranks at once, for a process that is about to end itself."""
        if self._group is not None:
            self._group.abandon()

    # --- the ranks

    async def _start_group(self) -> EngineInfo:
        """Starts ranks and waits until all are ready. Raises EngineStartError."""
        self._phase = "starting the process"
        self._group = RankGroup(
            self._options,
            command=self._command,
            size=self._size,
            comm=self._comm,
            step_timeout=self._step_timeout,
            hub=self.hub,
            on_phase=self._note_phase,
            on_outputs=self._dispatch,
        )
        self._infos = await self._group.start()
        self._info = self._infos[0]
        return self._info

    def _note_phase(self, report: PhaseReport) -> None:
        share = f" {100 * report.done // report.total}%" if report.total else ""
        self._phase = report.phase + share
        self._on_phase(report)

    async def _supervise(self, timeout: float) -> None:
        """Serves with one engine after the other until there were too many failures in a row."""
        try:
            await self._keep_serving(timeout)
        except Exception as error:
            logger.exception("unexpected error in the engine's supervisor")
            self._fail(f"unexpected error in the engine's supervisor: {error!r}")

    async def _keep_serving(self, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began = loop.time()
            reason = await self._serve_until_death()
            if self._state == "draining":
                logger.error("the engine died: %s; the server is ending", reason)
                self._end_streams("engine_failure", DIED)
                return
            if loop.time() - began >= self._restart.healthy_seconds:
                failures = 0
            failures += 1
            while True:
                if failures > self._restart.max_failures:
                    self._fail(reason)
                    return
                delay = min(
                    self._restart.first_delay * 2 ** (failures - 1), self._restart.max_delay
                )
                logger.error("the engine died: %s; starting it again in %g s", reason, delay)
                await asyncio.sleep(delay)
                try:
                    await asyncio.wait_for(self._start_group(), timeout)
                    num_replayed = self._replay()
                    break
                except asyncio.TimeoutError:
                    reason = f"not ready within {timeout:g} s"
                except EngineStartError as error:
                    reason = str(error)
                except Exception as error:
                    logger.exception("unexpected error while starting the engine")
                    reason = f"unexpected error while starting: {error!r}"
                await self._discard_group()
                failures += 1
            self.num_restarts += 1
            if self._state == "restarting":
                self._state = "ready"
            self._serving = True
            logger.info("the engine is ready again; %d requests go on", num_replayed)

    def _fail(self, reason: str) -> None:
        """The end: no engine is started any more."""
        self.failure = reason
        self._state = "failed"
        self._serving = False
        self._end_streams("engine_failure", DIED)

    async def _serve_until_death(self) -> str:
        """Waits until the engine is lost, and returns what it died of. Requests that were there at
        too many deaths end.
        """
        assert self._group is not None
        reason = await self._group.wait_lost()
        self._serving = False
        if self._state == "ready":
            self._state = "restarting"
        await self._discard_group()
        for stream in list(self._live.values()):
            stream.num_deaths += 1
            if stream.finish or stream.num_deaths > self._restart.max_replays:
                stream.fail("engine_failure", DIED)
                del self._live[stream.id]
        self._changed.set()
        return reason

    def _replay(self) -> int:
        """Submits what is live to the engine at hand; returns how many requests that are."""
        assert self._group is not None
        for stream in self._live.values():
            self._group.send(stream.resumption())
        return len(self._live)

    def _dispatch(self, message: StepOutputs) -> None:
        self.stats = message.stats
        for output in message.outputs:
            self._deliver(output)

    def _deliver(self, output: Output) -> None:
        stream = self._live.get(output.id)
        if stream is None or output.error_code == "engine_failure":
            return  # in the second case the news of the engine's end follows, and it is replayed
        stream.deliver(output)
        if output.finish:
            del self._live[output.id]
            self._changed.set()

    def _end_streams(self, code: ErrorCode, sentence: str) -> None:
        for stream in self._live.values():
            stream.fail(code, sentence)
        self._live.clear()
        self._changed.set()

    async def _discard_group(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            try:
                await group.close()
            except Exception:  # the ranks were killed, whatever is left of them
                logger.exception("unexpected error while the engine was closed")
