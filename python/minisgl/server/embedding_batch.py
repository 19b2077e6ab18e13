"""The embeddings of one HTTP request's prompts, as the engine makes them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from minisgl.engine.api import EngineBusy, EngineUnavailable
from minisgl.sampling_params import ParameterError
from minisgl.server import errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from minisgl.engine.api import EngineApi
    from minisgl.engine.stream import TokenStream
    from minisgl.ipc.messages import Output, Standing
    from minisgl.sampling_params import SamplingParams
    from minisgl.server.metrics import Metrics


class EmbeddingBatch:
    """Use it as a context manager: leaving it aborts what still runs.

    The engine has as many of the prompts at once as it computes together, so that a request with
    many of them leaves room in the queue to others.
    """

    num_generated_tokens = 0
    first_token_seconds = None  # no token comes

    def __init__(
        self,
        client: EngineApi,
        metrics: Metrics,
        *,
        arrived: float,
        prefix_salt: bytes | None,
        standing: Standing,
        session: str | None,
        adapter: int = 0,
    ) -> None:
        """`arrived` is the time.perf_counter() of the request's arrival."""
        self._client = client
        self._metrics = metrics
        self._arrived = arrived
        self._prefix_salt = prefix_salt
        self._standing = standing
        self._session = session
        self._adapter = adapter
        self._live: dict[asyncio.Task[Output], tuple[int, TokenStream]] = {}
        self._done: asyncio.Queue[asyncio.Task[Output]] = asyncio.Queue()
        self._reasons: dict[str, None] = {}
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.queued_seconds: float | None = None

    def __enter__(self) -> EmbeddingBatch:
        return self

    def __exit__(self, *_: object) -> None:
        for task, (_index, stream) in self._live.items():
            task.cancel()
            stream.abort()
            self._end("abort")
        self._live.clear()

    @property
    def finish_reasons(self) -> list[str]:
        """Why prompts ended: each reason once."""
        return list(self._reasons)

    async def embed(
        self, prompts: Sequence[list[int]], params: SamplingParams
    ) -> AsyncIterator[tuple[int, bytes]]:
        """The number of each prompt and its embedding, as they become ready. `params` has a
        `pooling`. Raises ApiError 400, 429 or 503; the context manager ends what was begun.
        """
        if self._adapter:
            params = msgspec.structs.replace(params, adapter=self._adapter)
        waiting = deque(enumerate(prompts))
        while waiting or self._live:
            while waiting and self._begin(*waiting[0], params):
                waiting.popleft()
            task = await self._done.get()
            index, stream = self._live.pop(task)
            yield index, self._take(task.result(), stream)

    def _begin(self, index: int, prompt: list[int], params: SamplingParams) -> bool:
        """Has the engine compute a prompt. False where it has to wait until others have ended."""
        if self._live and len(self._live) >= self._client.info.max_running:
            return False
        try:
            stream = self._client.submit(
                prompt,
                params,
                prefix_salt=self._prefix_salt,
                standing=self._standing,
                session=self._session,
            )
        except (EngineBusy, EngineUnavailable, ParameterError) as error:
            if self._live and not isinstance(error, ParameterError):
                return False
            raise errors.refused(error) from None
        task = asyncio.ensure_future(stream.next(whole=True))
        task.add_done_callback(self._done.put_nowait)
        self._live[task] = (index, stream)
        self.num_prompt_tokens += len(prompt)
        self._metrics.prompt_tokens += len(prompt)
        self._metrics.request_prompt_tokens.observe(len(prompt))
        return True

    def _take(self, output: Output, stream: TokenStream) -> bytes:
        self._end(output.finish, output)
        self.num_cached_tokens += stream.num_cached
        if output.finish in ("error", "abort"):
            raise errors.engine_error(output)
        return output.embedding

    def _end(self, reason: str, output: Output | None = None) -> None:
        """A prompt has ended: counted as every request of the engine's is."""
        self._reasons[reason] = None
        if output is None:
            self._metrics.finished[reason] += 1
            return
        waited = self._metrics.note_end(reason, time.perf_counter() - self._arrived, output.timings)
        if waited is not None:
            self.queued_seconds = max(waited, self.queued_seconds or 0.0)
