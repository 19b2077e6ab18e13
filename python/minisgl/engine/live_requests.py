"""The live requests of an engine: who gets its outputs, and what goes on at another engine when it
dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
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
    from minisgl.engine.api import EngineApi, PromptShape
    from minisgl.engine.stream import TokenStream
    from minisgl.ipc.messages import EngineInfo
    from minisgl.sampling_params import SamplingParams

ABORT_SECONDS = 2.0  # for the engine to confirm the aborts at the end of a drain

DIED = "the engine failed while it served this request"

# Tokens of a suspect's trial, and how many times more at each death after the one that made it
# suspect. An engine is a few steps ahead of what was heard of it.
TRIAL_TOKENS = 8
TRIAL_GROWTH = 4

# Puts a message to the engine without waiting; False when it is gone.
Send = Callable[[Submit | Abort], bool]


@dataclass(frozen=True)
class StreamWatch:
    """Who is told how streams of an engine get on, where there are several engines."""

    progressed: Callable[[int, int], None]  # a request's id, and how many tokens it has got
    ended: Callable[[TokenStream], None]
    waiting: Callable[[LiveRequests], None]  # requests wait at this engine, which has said so
    found_cause: Callable[[], None]  # of deaths: no other request is suspected of them any more


class LiveRequests:
    """Who is let in, and streams by request id. A stream is live until the engine has confirmed its
    end; where no engine is attached, until its end. It may be handed over to another engine's live
    requests at any time; each stream is in one of them.

    Streams that were there at several deaths are suspects: one of them may be what engines die of.
    An engine gets one after the other, each once the one before has made some tokens (a trial). If
    it dies nevertheless, the one that was on trial goes first. A suspect that has a trial and no
    other suspect beside it when the engine dies is the cause: it ends, and the others are suspects
    no longer.
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
        self._on_trial: TokenStream | None = None
        self._held: dict[int, TokenStream] = {}  # suspects that no engine has
        self._leaving: set[int] = set()  # handed over, and not let go by this engine yet
        self._send: Send | None = None  # None: no engine has the live requests
        self._changed = asyncio.Event()  # set whenever a request ended

    def __len__(self) -> int:
        return len(self._live)

    @property
    def streams(self) -> list[TokenStream]:
        """The live ones, in the order in which they came here."""
        return list(self._live.values())

    def have_adapter(self, adapter_id: int) -> bool:
        """Whether one of the live ones has this adapter."""
        return any(one.request.params.adapter == adapter_id for one in self._live.values())

    def waiting(self, most: int) -> list[TokenStream]:
        """Up to so many of those that the engine hasn't begun, by its last words: of the streams
        that have got nothing from it the ones that came last.
        """
        idle = (one for one in reversed(self._live.values()) if self._may_wait(one))
        return list(itertools.islice(idle, min(most, self.stats.num_waiting)))

    def _may_wait(self, stream: TokenStream) -> bool:
        has_nothing = not stream.received or stream.id in self._replaying
        return has_nothing and not stream.trial_tokens and not stream.finished

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
    def num_suspects(self) -> int:
        """Streams on trial, or that wait for theirs."""
        return (self._on_trial is not None) + len(self._held)

    @property
    def retry_after(self) -> int:
        """EngineApi's."""
        return self._backlog.seconds()

    @property
    def waiting_tokens(self) -> int:
        """EngineApi's."""
        return self._backlog.tokens

    def refusal(self, info: EngineInfo, prompts: Sequence[PromptShape]) -> str:
        """EngineApi.refusal() of the engine whose requests these are."""
        return self._admission.refusal(info, prompts)

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
        if self._send is None or not self._begin(stream, self._send):
            return False
        self._live[stream.id] = stream
        stream.belongs_to(self.abort)
        return True

    def _begin(self, stream: TokenStream, send: Send) -> bool:
        """The engine gets a stream, or it is held while another suspect is on trial. One that was
        handed over and comes back waits until the engine has let it go. False where the engine
        can't get it.
        """
        if stream.trial_tokens and self._on_trial is not None:
            self._held[stream.id] = stream
            return True
        if stream.id not in self._leaving and not send(stream.resumption()):
            return False
        if stream.trial_tokens:
            self._on_trial = stream
        return True

    def _end_trial(self) -> None:
        """The next suspect has its turn."""
        self._on_trial = None
        stream = next(iter(self._held.values()), None)
        if stream is not None and self._send is not None and self._begin(stream, self._send):
            del self._held[stream.id]

    def hand_over(self, stream: TokenStream, successor: LiveRequests) -> bool:
        """Another engine goes on with one of these streams. False, and it stays here, where that
        one can't get it.
        """
        if not successor.adopt(stream):
            return False
        if stream.received or self._send is None:
            successor._replaying.add(stream.id)
        was_held = stream.id in self._held
        self._remove(stream)
        if self._send is not None and not was_held and stream.id not in self._leaving:
            self._leaving.add(stream.id)
            self._send(Abort([stream.id]))
        return True

    def _let_go(self, output: Output) -> None:
        """What the engine says of a stream that was handed over, and may have come back."""
        if not output.finish:
            return
        self._leaving.remove(output.id)
        stream = self._live.get(output.id)
        if stream is None or output.id in self._held:
            return
        if stream.finished:
            self._forget(output.id)
        elif self._send is not None:
            self._send(stream.resumption())

    def blame(self, max_deaths: int) -> None:
        """An engine died with these requests. Ends the one that is the cause, if that is known;
        else those that have seen `max_deaths` (at least 1) are suspects from now on.
        """
        there = [stream for stream in self._live.values() if stream.id not in self._held]
        suspects = [stream for stream in there if stream.num_deaths >= max_deaths]
        if suspects == [self._on_trial]:
            suspects[0].fail("engine_failure", DIED)
            (self._watch.found_cause if self._watch else self.exonerate)()
            return
        for stream in suspects or there:
            stream.num_deaths += 1
            if (more := stream.num_deaths - max_deaths) >= 0:
                stream.trial_tokens = TRIAL_TOKENS * TRIAL_GROWTH**more
        if self._on_trial is not None:
            self._live = {self._on_trial.id: self._on_trial, **self._live}

    def exonerate(self) -> None:
        """The cause of the deaths that these requests have seen is another one."""
        for stream in self._live.values():
            stream.num_deaths = stream.trial_tokens = 0
        self._on_trial = None
        held, self._held = self._held, {}
        if self._send is not None:
            for stream in held.values():
                self._begin(stream, self._send)

    def abort(self, request_id: int) -> None:
        """EngineApi.abort()."""
        stream = self._live.get(request_id)
        if stream is None:
            return
        stream.deliver(Output(request_id, [], "abort"))
        is_held = request_id in self._held
        if is_held or self._send is None or not self._send(Abort([request_id])):
            self._forget(request_id)  # no engine has it, so none would confirm the abort

    def dispatch(self, message: StepOutputs) -> None:
        """Hands out what the engine made."""
        if self._send is not None:  # else these are the last words of an engine that died
            self._note_steps(self.stats, message.stats)
            self.stats = message.stats
        for output in message.outputs:
            if output.error_code == "engine_failure":
                continue  # the news of the engine's end follows
            if self._leaving and output.id in self._leaving:
                self._let_go(output)
                continue
            stream = self._live.get(output.id)
            if stream is None:
                continue
            if stream.prompt is not None and output.finish not in ("abort", "error"):
                self._backlog.serve(stream.prompt)
            if self._watch is not None and output.token_ids:
                self._watch.progressed(output.id, len(output.token_ids))
            stream.deliver(output)
            if self._replaying:
                self._replaying.discard(output.id)
            if output.finish:
                self._forget(output.id)
            elif stream is self._on_trial:
                stream.trial_tokens = max(0, stream.trial_tokens - len(output.token_ids))
                if not stream.trial_tokens:
                    self._end_trial()
        if self.stats.num_waiting and self._watch is not None and not self._leaving:
            self._watch.waiting(self)  # else the engine doesn't know yet who has left

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
        self._send = send
        for stream in self._live.values():
            self._begin(stream, send)
        return len(self._live)

    def detach(self, max_deaths: int | None) -> None:
        """The engine died: blame(). None: no request caused this death."""
        self._send = None
        self.stats = EngineStats()  # nothing runs any more, and the next engine counts anew
        if max_deaths is not None:
            self.blame(max_deaths)
        self._on_trial = None
        self._held.clear()
        self._leaving.clear()
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
        self._held.pop(stream.id, None)
        if stream is self._on_trial:
            self._end_trial()
        self._changed.set()
