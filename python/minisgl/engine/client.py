"""EngineClient: an engine in processes of its own, as the server's event loop sees it."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from minisgl.config import STEP_TIMEOUT
from minisgl.engine.adapters import Adapter, AdapterBook
from minisgl.engine.admission import Admission
from minisgl.engine.api import (
    SHUTTING_DOWN,
    EngineStartError,
    EngineUnavailable,
    PromptShape,
    State,
)
from minisgl.engine.group import RankGroup
from minisgl.engine.kv_events import CLEARED
from minisgl.engine.launcher import MakeLauncher
from minisgl.engine.live_requests import LiveRequests
from minisgl.engine.local_ranks import RANK_COMMAND, LocalRanks
from minisgl.engine.peers import ALONE, Peers
from minisgl.engine.revival import RestartPolicy, Revival
from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import (
    NO_STANDING,
    BlockEvent,
    EngineInfo,
    EngineOptions,
    EngineStats,
    PhaseReport,
    Standing,
    StepOutputs,
)

if TYPE_CHECKING:
    from minisgl.sampling_params import SamplingParams


OnBlocks = Callable[[Sequence[BlockEvent]], None]
_FIRST_PHASE = "starting the process"


class EngineClient:
    """The EngineApi of a group of ranks: what is live, and who is let in (LiveRequests), and what
    serves (Revival). All methods belong to the event loop that called start().

    When the engine dies, it is started again, in a drain too, and each live request goes on where
    its stream stopped: the new engine gets the prompt and what was delivered of the answer as one
    prompt.
    """

    replicas = ()  # it is an engine by itself

    def __init__(
        self,
        options: EngineOptions,
        *,
        size: int = 1,
        comm: str = "auto",
        step_timeout: float = STEP_TIMEOUT,
        max_waiting: int = 1024,
        max_waiting_tokens: int | None = None,
        launcher: MakeLauncher | None = None,
        restart: RestartPolicy | None = None,
        on_phase: Callable[[PhaseReport], None] = lambda report: None,
        peers: Peers = ALONE,
        on_blocks: OnBlocks | None = None,
        adapters: AdapterBook | None = None,
    ) -> None:
        """`size` ranks that sum through `comm`, started by a `launcher` (processes of this host).
        `step_timeout`: seconds that one may work without progress. `max_waiting`: requests taken
        beyond the running ones; `max_waiting_tokens`: tokens of the prompts that wait
        together; None: any number. `on_phase` hears how a start goes, `on_blocks` what enters and
        leaves the prefix cache. `adapters`: those that the server has. `peers`: the other
        engines, where this is one of several.
        """
        self._on_phase = on_phase
        self._on_blocks = on_blocks
        options = dataclasses.replace(options, report_blocks=on_blocks is not None)
        self._phase = _FIRST_PHASE
        self._draining = False
        self.adapters = adapters or AdapterBook(enabled=options.enable_lora)
        admission = peers.admission or Admission(max_waiting, max_waiting_tokens)
        self.requests = LiveRequests(admission, peers.watch)

        def make_group() -> RankGroup:
            self._phase = _FIRST_PHASE
            self._note_no_blocks()
            return RankGroup(
                options,
                launcher=launcher or functools.partial(LocalRanks, RANK_COMMAND),
                size=size,
                comm=comm,
                step_timeout=step_timeout,
                on_phase=self._note_phase,
                on_outputs=self._take_outputs,
                on_loss=self._revival.hear_loss,
                adapters=self.adapters,
            )

        self._revival = Revival(make_group, self.requests, restart or RestartPolicy(), peers)

    # --- what is asked

    @property
    def state(self) -> State:
        """Where the engine is between its first start and its end."""
        if self._draining and self._revival.state != "failed":
            return "draining"
        return self._revival.state

    @property
    def phase(self) -> str:
        """As in EngineApi."""
        if self._revival.state not in ("starting", "restarting"):
            return ""
        return self._phase if self._revival.is_starting else "ending the engine that died"

    @property
    def serves(self) -> bool:
        """Whether the ranks take requests, draining or not."""
        return self._revival.state == "ready"

    @property
    def exhausted(self) -> bool:
        """Whether it has died or failed to start too often in a row."""
        return self._revival.exhausted

    @property
    def failure(self) -> str:
        """Why the state is "failed"."""
        return self._revival.failure

    @property
    def info(self) -> EngineInfo:
        """As in EngineApi."""
        infos = self._revival.infos
        if not infos:
            raise EngineUnavailable("starting")
        return infos[0]

    @property
    def rank_infos(self) -> list[EngineInfo]:
        """The info of each rank, in their order."""
        return self._revival.infos

    @property
    def stats(self) -> EngineStats:
        """As in EngineApi."""
        return self.requests.stats

    @property
    def on_steps(self) -> Callable[[float, int], None]:
        """As in EngineApi."""
        return self.requests.on_steps

    @on_steps.setter
    def on_steps(self, hear: Callable[[float, int], None]) -> None:
        self.requests.on_steps = hear

    @property
    def num_live(self) -> int:
        """As in EngineApi."""
        return len(self.requests)

    @property
    def num_restarts(self) -> int:
        """As in EngineApi."""
        return self._revival.num_restarts

    @property
    def num_replaying(self) -> int:
        """As in EngineApi."""
        return self.requests.num_replaying

    @property
    def waiting_tokens(self) -> int:
        """As in EngineApi."""
        return self.requests.waiting_tokens

    @property
    def retry_after(self) -> int:
        """As in EngineApi."""
        return self.requests.retry_after

    def refusal(self, prompts: Sequence[PromptShape]) -> str:
        """As in EngineApi."""
        return self.requests.refusal(self.info, prompts)

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
        return self.requests.submit(
            self, prompt_ids, params, end_ids, bad_words, prefix_salt, standing
        )

    def abort(self, request_id: int) -> None:
        """As in EngineApi."""
        self.requests.abort(request_id)

    async def load_adapter(self, name: str, path: str) -> None:
        """As in EngineApi."""
        await self.adapters.load(name, path, self.tell_adapter, self.forget_adapter)

    def unload_adapter(self, name: str) -> None:
        """As in EngineApi."""
        self.adapters.unload(name, self.requests.have_adapter, self.forget_adapter)

    async def tell_adapter(self, adapter: Adapter) -> None:
        """The ranks that serve load it; those that start do by themselves. Raises AdapterError."""
        if (group := self._revival.serving) is not None:
            await group.load_adapter(adapter)

    def forget_adapter(self, adapter_id: int) -> None:
        """No request names it any more."""
        if (group := self._revival.serving) is not None:
            group.unload_adapter(adapter_id)

    # --- life

    async def start(self, timeout: float | None) -> EngineInfo:
        """Starts the ranks and waits until all are ready, for up to `timeout` seconds (None: as
        long as it takes). Raises EngineStartError; close() is due in any case.
        """
        try:
            await asyncio.wait_for(self._revival.start(), timeout)
        except asyncio.TimeoutError:
            raise EngineStartError(
                f"the engine was not ready within {timeout:g} s (it was at: {self._phase}); "
                "a longer --startup-timeout gives it more"
            ) from None
        self._revival.serve(timeout)
        return self.info

    async def start_later(self, reason: str, timeout: float | None) -> None:
        """Where start() has raised EngineStartError for this reason: starts again, as an engine is
        that has died.
        """
        await self._revival.start_later(reason, timeout)

    async def wait_failed(self) -> str:
        """Returns why, once the engine has died too often to be started again."""
        return await self._revival.wait_failed()

    async def drain(self, timeout: float) -> bool:
        """As in EngineApi."""
        self._draining = True
        self._revival.end_when_idle()
        return await self.requests.drain(timeout)

    async def close(self) -> None:
        """Ends the ranks, in order if they listen; live requests end with an error. Idempotent."""
        self._draining = True
        self.requests.end_all("shutting_down", SHUTTING_DOWN)
        await self._revival.close()
        self._note_no_blocks()

    def kill(self) -> None:
        """Ends the ranks at once, for a process that is about to end itself."""
        self._revival.kill()

    def _take_outputs(self, message: StepOutputs) -> None:
        if message.block_events and self._on_blocks is not None:
            self._on_blocks(message.block_events)
        self.requests.dispatch(message)

    def _note_no_blocks(self) -> None:
        """An engine begins with an empty prefix cache, and leaves none."""
        if self._on_blocks is not None:
            self._on_blocks([CLEARED])

    def _note_phase(self, report: PhaseReport) -> None:
        share = f" {100 * report.done // report.total}%" if report.total else ""
        self._phase = report.phase + share
        self._on_phase(report)
