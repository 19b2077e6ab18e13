"""A scripted EngineApi behind the HTTP application, without a process or a model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from minisgl.engine.adapters import Adapter, AdapterBook, AdapterError
from minisgl.engine.api import (
    EngineApi,
    EngineBusy,
    EngineUnavailable,
    PromptShape,
    ReplicaFigures,
    State,
)
from minisgl.engine.request import make_request
from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import (
    NO_STANDING,
    EngineInfo,
    EngineStats,
    Finish,
    Output,
    Standing,
    TokenLogprob,
)
from minisgl.sampling_params import SamplingParams
from tests.python.server.byte_tokenizer import END, VOCAB_SIZE
from tests.python.waiting import PATIENCE

Script = Callable[["FakeClient", TokenStream], Awaitable[None]]


@dataclass
class FakeClient:
    """Runs `script` for each request. `aborted` has an entry for each abort that reached the
    engine.
    """

    script: Script
    max_model_len: int = 256
    vocab_size: int = VOCAB_SIZE
    max_live: int = 1000
    max_running: int = 0
    state: State = "ready"
    phase: str = ""
    failure: str = ""
    num_restarts: int = 0
    num_replaying: int = 0
    waiting_tokens: int = 17
    retry_after: int = 4
    replicas: Sequence[ReplicaFigures] = ()
    adapters: AdapterBook = field(default_factory=lambda: AdapterBook(enabled=True))
    aborted: list[int] = field(default_factory=list)
    submitted: list[TokenStream] = field(default_factory=list)
    stats: EngineStats = field(
        default_factory=lambda: EngineStats(
            num_running=3,
            num_waiting=2,
            pages_total=100,
            pages_free=75,
            pages_cached=40,
            prefix_queries=400,
            prefix_hits=300,
            prefix_evictions=160,
            host_pages_cached=90,
            host_queries=100,
            host_hits=60,
            host_evictions=32,
            host_bytes_out=5000,
            host_bytes_in=3000,
            num_preemptions=7,
            num_drafts=5,
            draft_tokens=20,
            accepted_tokens=12,
            accepted_at=[(0, 5), (1, 4), (2, 3)],
            draft_seconds=0.5,
            num_steps=50,
            step_seconds=2.5,
        )
    )

    def __post_init__(self) -> None:
        self.live: dict[int, TokenStream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_steps: Callable[[float, int], None] = lambda tokens, steps: None

    @property
    def info(self) -> EngineInfo:
        if self.state == "starting":
            raise EngineUnavailable("starting")
        return EngineInfo(
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            kv_dtype="bf16",
            num_pages=100,
            page_size=16,
            kv_cache_bytes=1 << 20,
            hidden_size=8,
            max_running=self.max_running,
        )

    @property
    def rank_infos(self) -> Sequence[EngineInfo]:
        return [] if self.state == "starting" else [self.info]

    @property
    def num_live(self) -> int:
        return len(self.live)

    def refusal(self, prompts: Sequence[PromptShape]) -> str:
        count = sum(one.choices for one in prompts)
        return f"{count} of {self.max_live}." if count > max(1, self.max_live) else ""

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
        if self.state != "ready":
            raise EngineUnavailable(self.state)
        if len(self.live) >= self.max_live:
            raise EngineBusy(f"{self.max_live} requests are live.")
        request = make_request(
            len(self.submitted),
            prompt_ids,
            params,
            self.info,
            end_ids,
            bad_words,
            prefix_salt,
            standing,
        )
        stream = TokenStream(request, self.abort)
        stream.session = session
        self.submitted.append(stream)
        self.live[stream.id] = stream
        task = asyncio.create_task(self._run(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return stream

    async def load_adapter(self, name: str, path: str) -> None:
        async def tell(adapter: Adapter) -> None:
            if "broken" in adapter.path:
                raise AdapterError(f"{path!r} is broken")

        await self.adapters.load(name, path, tell, lambda number: None)

    def unload_adapter(self, name: str) -> None:
        self.adapters.unload(name, lambda number: False, lambda number: None)

    def abort(self, request_id: int) -> None:
        if stream := self.live.pop(request_id, None):
            self.aborted.append(request_id)
            stream.deliver(Output(request_id, [], "abort"))

    async def drain(self, timeout: float) -> bool:
        self.state = "draining"
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout)
        in_time = not self.live
        for request_id in list(self.live):
            self.abort(request_id)
        return in_time

    async def _run(self, stream: TokenStream) -> None:
        await asyncio.sleep(0)
        await self.script(self, stream)
        self.live.pop(stream.id, None)

    async def settle(self) -> None:
        """Waits until no script runs."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))


# The fake can do what the server expects of an engine: mypy says so.
_check: type[EngineApi] = FakeClient


def output(stream: TokenStream, token_ids: list[int], finish: Finish = "") -> Output:
    """An output with the log probabilities that the request asked for: token t has -t/100, its top
    are t, t+1 ...
    """
    num_top = stream.request.params.logprobs
    logprobs: list[TokenLogprob] | None = None
    if num_top is not None:
        logprobs = [
            (
                -token / 100,
                [(token + k, -(token + k) / 100) for k in range(num_top)],
            )
            for token in token_ids
        ]
    timings = (0.001, 0.002, 0.003) if finish else None
    return Output(stream.id, list(token_ids), finish, logprobs=logprobs, timings=timings)


async def taken(stream: TokenStream) -> None:
    """Returns once the server has what was delivered, or waits for the end before it looks."""

    async def wait() -> None:
        while stream._pending is not None and not stream._waits_for_end and not stream.finished:
            await asyncio.sleep(0)

    await asyncio.wait_for(wait(), PATIENCE)


def reply(text: str, *, delay: float = 0.0) -> Script:
    """A script that says `text`, a token (byte) at a time, then its end token. With a delay the
    server has each before the next comes.
    """

    async def script(client: FakeClient, stream: TokenStream) -> None:
        request = stream.request
        tokens = [*text.encode(), END]
        finish: Finish = "stop"
        if len(tokens) > request.params.max_tokens:
            tokens, finish = tokens[: request.params.max_tokens], "length"
        steps = [[token] for token in tokens] or [[]]  # of the prompt alone, one without a token
        for position, step in enumerate(steps):
            if delay:
                await asyncio.sleep(delay)
                await taken(stream)
            if stream.finished:
                return
            last = position == len(steps) - 1
            made = output(stream, step, finish if last else "")
            if position == 0 and request.params.prompt_logprobs is not None:
                made.prompt_logprobs = [
                    (token, None if k == 0 else -math.log(2), [(token, -math.log(2))])
                    for k, token in enumerate(request.prompt)
                ]
            stream.deliver(made)

    return script


def endless(*, delay: float = 0.005) -> Script:
    """A script that says "x" until it is aborted or max_tokens are reached."""

    async def script(client: FakeClient, stream: TokenStream) -> None:
        for position in range(stream.request.params.max_tokens):
            await asyncio.sleep(delay)
            if stream.finished:
                return
            last = position == stream.request.params.max_tokens - 1
            stream.deliver(output(stream, [ord("x")], "length" if last else ""))

    return script
