"""The live requests of an engine: who gets its outputs, and what goes on at another engine when it
dies.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from minisgl.engine.api import SHUTTING_DOWN, EngineBusy, EngineUnavailable
from minisgl.engine.backlog import Backlog, SharedBound, WaitingPrompt
from minisgl.engine.request import make_request
from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import (
    Abort,
    EngineStats,
    ErrorCode,
    Output,
    Standing,
    StepOutputs,
    Submit,
)

if TYPE_CHECKING:
    from minisgl.engine.api import EngineApi
    from minisgl.sampling_params import SamplingParams

ABORT_SECONDS = 2.0  # for the engine to confirm the aborts at the end of a drain

DIED = "the engine failed while it served this request"

# Puts a message to the engine without waiting; False when it is gone.
Send = Callable[[Submit | Abort], bool]


class LiveRequests:
    """Who is let in, and streams by request id. A stream is live until the engine has confirmed its
    end; where no engine is attached, until its end.
    """

    def __init__(self, max_waiting: int, max_waiting_tokens: int | None = None) -> None:
        """`max_waiting`: requests taken beyond those that the engine runs at once;
        `max_waiting_tokens`: tokens of all prompts that have no answer yet; None: any number. Both
        are shared by API keys: see SharedBound.
        """
        self.on_steps: Callable[[float, int], None] = lambda tokens, steps: None  # EngineApi's
        self.stats = EngineStats()
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._backlog = Backlog()
        self._live: dict[int, TokenStream] = {}
        self._live_by_share = SharedBound()
        self._latest: TokenStream | None = None  # whose prompt the next request may share
        self._replaying: set[int] = set()
        self._next_id = 0
        self._send: Send | None = None  # None: no engine has the live requests
        self._changed = asyncio.Event()  # set whenever a request ended

    def __len__(self) -> int:
        return len(self._live)

    @property
    def num_replaying(self) -> int:
        """Requests that have got nothing since their engine died."""
        return len(self._replaying)

    @property
    def retry_after(self) -> int:
        """EngineApi's."""
        return self._backlog.seconds()

    @property
    def waiting_tokens(self) -> int:
        """EngineApi's."""
        return self._backlog.tokens

    def submit(
        self,
        engine: EngineApi,
        prompt_ids: list[int],
        params: SamplingParams,
        end_ids: Sequence[int],
        bad_words: Sequence[list[int]],
        prefix_salt: bytes | None,
        standing: Standing,
    ) -> TokenStream:
        """EngineApi.submit() of the engine whose requests these are."""
        if engine.state != "ready":
            raise EngineUnavailable(engine.state)
        info, share = engine.info, standing.share
        most = info.max_running + self._max_waiting
        if not self._live_by_share.allows(share, 1, most):
            raise EngineBusy(
                f"{len(self._live)} requests are waiting or running, of at most {most} "
                "(--max-running and --max-waiting)."
            )
        shared = self._shared_prompt(prompt_ids, params, prefix_salt) if info.prefix_cache else None
        waiting, tokens = self._backlog.waiting, 0 if shared else len(prompt_ids)
        # Where nothing waits, a prompt of any length is taken, and its choices with it.
        is_bounded = waiting.total > 0 and tokens > 0
        if is_bounded and not waiting.allows(share, tokens, self._max_waiting_tokens):
            raise EngineBusy(
                f"{waiting.total} prompt tokens are waiting, and the {tokens} of this prompt would "
                f"make them more than {self._max_waiting_tokens} (--max-waiting-tokens)."
            )
        request = make_request(
            self._next_id, prompt_ids, params, info, end_ids, bad_words, prefix_salt, standing
        )
        stream = TokenStream(request, self.abort)
        if self._send is None or not self._send(request):
            raise EngineUnavailable("restarting")
        self._next_id += 1
        self._live[stream.id] = stream
        self._live_by_share.add(share, 1)
        if shared is None:
            stream.prompt = self._backlog.add(tokens, share)
        else:
            stream.prompt = shared
            shared.requests += 1
        self._latest = stream
        return stream

    def _shared_prompt(
        self, prompt_ids: list[int], params: SamplingParams, prefix_salt: bytes | None
    ) -> WaitingPrompt | None:
        """The prompt of the request before this one where that waits and is the same: of one choice
        of several. One whose log probabilities are wanted is computed anew.
        """
        latest = self._latest
        if latest is None or latest.request.prompt is not prompt_ids:
            return None
        if latest.request.prefix_salt != prefix_salt or params.prompt_logprobs is not None:
            return None
        return latest.prompt

    def abort(self, request_id: int) -> None:
        """EngineApi.abort()."""
        stream = self._live.get(request_id)
        if stream is None:
            return
        stream.deliver(Output(request_id, [], "abort"))
        if self._send is None or not self._send(Abort([request_id])):
            self._forget(request_id)  # no engine has it, so none would confirm the abort

    def dispatch(self, message: StepOutputs) -> None:
        """Hands out what the engine made."""
        if self._send is not None:  # else these are the last words of an engine that died
            self._note_steps(self.stats, message.stats)
            self.stats = message.stats
        for output in message.outputs:
            stream = self._live.get(output.id)
            if stream is None or output.error_code == "engine_failure":
                continue  # in the second case the news of the engine's end follows
            if stream.prompt is not None and output.finish not in ("abort", "error"):
                self._backlog.serve(stream.prompt)
            stream.deliver(output)
            if self._replaying:
                self._replaying.discard(output.id)
            if output.finish:
                self._forget(output.id)

    def _note_steps(self, before: EngineStats, now: EngineStats) -> None:
        steps = now.num_steps - before.num_steps
        if steps > 0:
            tokens = now.prompt_tokens - before.prompt_tokens
            tokens += now.generated_tokens - before.generated_tokens
            self.on_steps(tokens / steps, steps)

    # --- one engine after the other

    def attach(self, send: Send) -> int:
        """From now on an engine serves: it gets all that is live. Returns how many requests that
        are.
        """
        for stream in self._live.values():
            send(stream.resumption())
        self._send = send
        return len(self._live)

    def detach(self, max_deaths: int | None) -> None:
        """The engine died. A request that has seen more than `max_deaths` engines die may be the
        cause: it ends. None: no request caused this death.
        """
        self._send = None
        self.stats = EngineStats()  # nothing runs any more, and the next engine counts anew
        for stream in list(self._live.values()):
            if max_deaths is not None:
                stream.num_deaths += 1
            if max_deaths is not None and stream.num_deaths > max_deaths:
                stream.fail("engine_failure", DIED)
            if stream.finished:
                self._forget(stream.id)
        self._replaying = set(self._live)

    def end_all(self, code: ErrorCode, sentence: str) -> None:
        """Ends every stream with an error; no engine serves any more."""
        self._send = None
        for stream in list(self._live.values()):
            stream.fail(code, sentence)
            self._forget(stream.id)

    async def drain(self, timeout: float) -> bool:
        """EngineApi.drain(), for an engine that takes no new requests."""
        if await self._wait_idle(timeout):
            return True
        for stream in list(self._live.values()):
            stream.fail("shutting_down", SHUTTING_DOWN)
            self.abort(stream.id)
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

    def _forget(self, request_id: int) -> None:
        stream = self._live.pop(request_id)
        self._live_by_share.add(stream.request.standing.share, -1)
        if stream.prompt is not None:
            self._backlog.drop(stream.prompt)
        if stream is self._latest:
            self._latest = None
        self._replaying.discard(request_id)
        self._changed.set()
