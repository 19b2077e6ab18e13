"""The live requests of an engine: who gets its outputs, and what goes on at another engine when it
dies.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minisgl.engine.admission import Admission
from minisgl.engine.api import SHUTTING_DOWN
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
    from minisgl.engine.stream import TokenStream
    from minisgl.sampling_params import SamplingParams

ABORT_SECONDS = 2.0  # for the engine to confirm the aborts at the end of a drain

DIED = "the engine failed while it served this request"

# Puts a message to the engine without waiting; False when it is gone.
Send = Callable[[Submit | Abort], bool]


@dataclass(frozen=True)
class StreamWatch:
    """Who is told how streams of an engine get on, where there are several engines."""

    progressed: Callable[[int, int], None]  # a request's id, and how many tokens it has got
    ended: Callable[[TokenStream], None]


class LiveRequests:
    """Who is let in, and streams by request id. A stream is live until the engine has confirmed its
    end; where no engine is attached, until its end. It may be handed over to another engine's live
    requests at any time; each stream is in one of them.
    """

    def __init__(self, admission: Admission, watch: StreamWatch | None = None) -> None:
        """Several engines have one `admission`."""
        self.on_steps: Callable[[float, int], None] = lambda tokens, steps: None  # EngineApi's
        self.stats = EngineStats()
        self._admission = admission
        self._backlog = admission.backlog
        self._watch = watch
        self._live: dict[int, TokenStream] = {}
        self._replaying: set[int] = set()
        self._send: Send | None = None  # None: no engine has the live requests
        self._changed = asyncio.Event()  # set whenever a request ended

    def __len__(self) -> int:
        return len(self._live)

    @property
    def streams(self) -> list[TokenStream]:
        """The live ones, in the order in which they came here."""
        return list(self._live.values())

    @property
    def tokens_without_answer(self) -> int:
        """Prompt tokens of those that have got nothing yet. Other than waiting_tokens, which may be
        of several engines, it is this one's, and counts each choice.
        """
        return sum(len(one.request.prompt) for one in self._live.values() if not one.received)

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
        return self._admission.submit(
            engine, prompt_ids, params, end_ids, bad_words, prefix_salt, standing, None, self.adopt
        )

    def adopt(self, stream: TokenStream) -> bool:
        """The engine serves this stream from now on, from where it is. False, and nothing has
        changed, where the engine can't get it.
        """
        if self._send is None or not self._send(stream.resumption()):
            return False
        self._live[stream.id] = stream
        stream.belongs_to(self.abort)
        return True

    def hand_over(self, stream: TokenStream, successor: LiveRequests) -> bool:
        """Another engine goes on with one of these streams. False, and it stays here, where that
        one can't get it.
        """
        if not successor.adopt(stream):
            return False
        successor._replaying.add(stream.id)
        self._remove(stream)
        if self._send is not None:
            self._send(Abort([stream.id]))
        return True

    def blame(self, max_deaths: int) -> None:
        """An engine died with these requests, and one that has seen more than `max_deaths` may be
        the cause: it ends.
        """
        for stream in list(self._live.values()):
            stream.num_deaths += 1
            if stream.num_deaths > max_deaths:
                stream.fail("engine_failure", DIED)

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
            if self._watch is not None and output.token_ids:
                self._watch.progressed(output.id, len(output.token_ids))
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
        if max_deaths is not None:
            self.blame(max_deaths)
        for stream in list(self._live.values()):
            if stream.finished:
                self._forget(stream.id)
        self._replaying = set(self._live)

    def end_all(self, code: ErrorCode, sentence: str) -> None:
        """Ends every stream with an error; no engine serves any more."""
        self._send = None
        for stream in list(self._live.values()):
            stream.fail(code, sentence)
            self._forget(stream.id)

    def give_up(self, code: ErrorCode, sentence: str) -> None:
        """Ends every stream with an error; the engine is told."""
        for stream in list(self._live.values()):
            stream.fail(code, sentence)
            self.abort(stream.id)

    async def drain(self, timeout: float) -> bool:
        """EngineApi.drain(), for an engine that takes no new requests."""
        if await self.wait_idle(timeout):
            return True
        self.give_up("shutting_down", SHUTTING_DOWN)
        await self.wait_idle(ABORT_SECONDS)
        return False

    async def wait_idle(self, timeout: float) -> bool:
        """Waits until no request is live, for up to `timeout` seconds; whether none is."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._until_idle(), timeout)
        return not self._live

    async def _until_idle(self) -> None:
        while self._live:
            self._changed.clear()
            await self._changed.wait()

    def _forget(self, request_id: int) -> None:
        stream = self._live[request_id]
        self._remove(stream)
        self._admission.end(stream)
        if self._watch is not None:
            self._watch.ended(stream)

    def _remove(self, stream: TokenStream) -> None:
        del self._live[stream.id]
        self._replaying.discard(stream.id)
        self._changed.set()
