"""NativeEngine: the EngineApi of an engine in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from minisgl.engine.adapters import Adapter, AdapterBook, AdapterError
from minisgl.engine.admission import Admission
from minisgl.engine.api import SHUTTING_DOWN, PromptShape, State
from minisgl.engine.live_requests import LiveRequests
from minisgl.ipc.messages import (
    NO_STANDING,
    Abort,
    EngineInfo,
    EngineOptions,
    EngineStats,
    Output,
    Standing,
    StepOutputs,
    Submit,
)
from minisgl.rank.adapters import load_adapter
from minisgl.rank.grammars import GrammarSupport
from minisgl.tasks import background

if TYPE_CHECKING:
    from minisgl._native import Engine
    from minisgl.engine.stream import TokenStream
    from minisgl.sampling_params import SamplingParams

# The engine wakes the loop for every output; this only bounds how late a dead engine is noticed.
FAILURE_CHECK_SECONDS = 1.0

logger = logging.getLogger(__name__)


class NativeEngine:
    """A loaded native engine. It belongs to the event loop that it is made on; close() is due."""

    phase = ""  # it was loaded before
    replicas = ()  # it is an engine by itself
    num_restarts = num_replaying = 0  # the loss of an engine in this process is final

    def __init__(self, engine: Engine, options: EngineOptions) -> None:
        """Starts the engine, which was made with `options`."""
        self.info = msgspec.convert(engine.info, EngineInfo)
        self.rank_infos = (self.info,)
        self.failure = ""
        self.on_steps: Callable[[float, int], None] = lambda tokens, steps: None  # for a server
        self._engine = engine
        self._grammars = GrammarSupport(engine, options.model_path)
        self._requests = LiveRequests(Admission(options.max_waiting))
        self._draining = False
        self.adapters = AdapterBook(enabled=options.enable_lora)
        engine.start()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(engine.event_fd(), self._take_outputs)
        self._watch = background(self._watch_engine(), "the watch of the engine", self._fail)
        self._requests.attach(self._send)

    @property
    def state(self) -> State:
        """As in EngineApi."""
        if self.failure:
            return "failed"
        return "draining" if self._draining else "ready"

    @property
    def stats(self) -> EngineStats:
        """As in EngineApi."""
        return msgspec.convert(self._engine.stats(), EngineStats)

    @property
    def num_live(self) -> int:
        """As in EngineApi."""
        return len(self._requests)

    @property
    def waiting_tokens(self) -> int:
        """As in EngineApi."""
        return self._requests.waiting_tokens

    @property
    def retry_after(self) -> int:
        """As in EngineApi."""
        return self._requests.retry_after

    def refusal(self, prompts: Sequence[PromptShape]) -> str:
        """As in EngineApi."""
        return self._requests.refusal(self.info, prompts)

    def submit(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        end_ids: Sequence[int] = (),
        bad_words: Sequence[list[int]] = (),
        prefix_salt: bytes | None = None,
        standing: Standing = NO_STANDING,
        session: str | None = None,
    ) -> TokenStream:
        """As in EngineApi."""
        return self._requests.submit(
            self, prompt_ids, params, end_ids, bad_words, prefix_salt, standing
        )

    def abort(self, request_id: int) -> None:
        """As in EngineApi."""
        self._requests.abort(request_id)

    async def load_adapter(self, name: str, path: str) -> None:
        """As in EngineApi."""

        async def tell(adapter: Adapter) -> None:
            if error := await load_adapter(self._engine, adapter.id, adapter.path):
                raise AdapterError(error)

        await self.adapters.load(name, path, tell, self._engine.unload_adapter)

    def unload_adapter(self, name: str) -> None:
        """As in EngineApi."""
        self.adapters.unload(name, self._requests.have_adapter, self._engine.unload_adapter)

    async def drain(self, timeout: float) -> bool:
        """As in EngineApi."""
        self._draining = True
        return await self._requests.drain(timeout)

    async def close(self) -> None:
        """Ends what lives and stops the engine's thread. Idempotent."""
        self._draining = True
        self._requests.end_all("shutting_down", SHUTTING_DOWN)
        self._stop_listening()
        await asyncio.wait({self._watch})
        self._engine.stop()

    def _send(self, message: Submit | Abort) -> bool:
        if isinstance(message, Submit):
            if message.params.grammar is not None:
                self._grammars.need()
            self._engine.submit(message.engine_fields())
        else:
            for request_id in message.ids:
                self._engine.abort(request_id)
        return True

    def _take_outputs(self) -> None:
        try:
            outputs = [Output(*fields) for fields in self._engine.take_outputs()]
            self._requests.dispatch(StepOutputs(outputs, self._requests.stats))
        except Exception as error:  # its outputs are lost
            logger.exception("unexpected error while taking outputs")
            self._fail(f"unexpected error while taking outputs: {error!r}")
            return
        if failure := self._engine.failure():
            self._fail(failure)

    async def _watch_engine(self) -> None:
        while not (failure := self._engine.failure()):  # noqa: ASYNC110 - a native thread's
            await asyncio.sleep(FAILURE_CHECK_SECONDS)
        self._fail(failure)

    def _fail(self, failure: str) -> None:
        if not self.failure:
            self.failure = failure
            self._requests.end_all("engine_failure", failure)
            self._stop_listening()

    def _stop_listening(self) -> None:
        self._watch.cancel()
        self._loop.remove_reader(self._engine.event_fd())
