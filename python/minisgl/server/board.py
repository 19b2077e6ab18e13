"""What the board shows: an hour of samples of what /metrics says, and the latest refusals."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from minisgl.engine.api import EngineApi
    from minisgl.server.metrics import Metrics

SECONDS = 2.0  # between two samples
KEPT = 1800  # samples: an hour
WINDOW = 15  # samples that a percentile is over: few requests begin within one
REFUSALS_KEPT = 50
MESSAGE_CHARS = 200


class Sample(NamedTuple):
    """The numbers of a moment. Rates are per second since the sample before it; percentiles are of
    the latest WINDOW samples, in seconds, and None where nothing was measured in them.
    """

    time: float  # Unix seconds
    prompt_rate: float  # tokens
    generation_rate: float
    running: int
    waiting: int
    kv_usage: float  # 0 to 1
    device_hits: float | None  # share of the prompt tokens that were looked for since, 0 to 1
    host_hits: float | None
    first_token_p50: float | None
    first_token_p90: float | None
    first_token_p99: float | None
    token_p50: float | None
    token_p90: float | None
    token_p99: float | None


class Refusal(NamedTuple):
    """A request that got an error for an answer."""

    time: float
    route: str
    status: int
    code: str
    message: str


class _Counts(NamedTuple):
    """Counters that samples are made of the differences of."""

    prompt: int
    generated: int
    queries: int
    device_hits: int
    host_hits: int
    first_token: tuple[int, ...]  # by bucket
    token: tuple[int, ...]


class Board:
    """Belongs to the server's loop. A sample takes microseconds, and no request waits for one."""

    def __init__(
        self, metrics: Metrics, client: EngineApi, clock: Callable[[], float] = time.time
    ) -> None:
        self._metrics = metrics
        self._client = client
        self._clock = clock
        self.samples: deque[Sample] = deque(maxlen=KEPT)
        self.refusals: deque[Refusal] = deque(maxlen=REFUSALS_KEPT)
        self._counts: deque[_Counts] = deque([self._count()], maxlen=WINDOW)
        self._at = clock()
        self._news = asyncio.Event()
        self._over = False

    def refuse(self, route: str, status: int, code: str, message: str) -> None:
        """Notes an error that a client was answered with."""
        shown = message if len(message) <= MESSAGE_CHARS else message[:MESSAGE_CHARS] + "..."
        self.refusals.append(Refusal(self._clock(), route, status, code, shown))

    async def run(self) -> None:
        """Takes samples until it is cancelled, with which those who follow come to an end, too."""
        try:
            while True:
                await asyncio.sleep(SECONDS)
                self.sample()
        finally:
            self._over = True
            self._news.set()

    def sample(self) -> None:
        """Takes one now."""
        now, counts, stats = self._clock(), self._count(), self._client.stats
        earlier, first = self._counts[-1], self._counts[0]
        seconds = max(now - self._at, 1e-3)
        queries = counts.queries - earlier.queries
        metrics = self._metrics
        first_token = [
            new - old for new, old in zip(counts.first_token, first.first_token, strict=True)
        ]
        token = [new - old for new, old in zip(counts.token, first.token, strict=True)]
        self.samples.append(
            Sample(
                round(now, 1),
                (counts.prompt - earlier.prompt) / seconds,
                (counts.generated - earlier.generated) / seconds,
                stats.num_running if self._client.num_live else 0,
                stats.num_waiting if self._client.num_live else 0,
                stats.kv_cache_usage,
                # An engine that was started again counts from 0.
                max(0, counts.device_hits - earlier.device_hits) / queries if queries > 0 else None,
                max(0, counts.host_hits - earlier.host_hits) / queries if queries > 0 else None,
                *(metrics.time_to_first_token.quantile(share, first_token) for share in _SHARES),
                *(metrics.inter_token_latency.quantile(share, token) for share in _SHARES),
            )
        )
        self._counts.append(counts)
        self._at = now
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def following(self) -> AsyncIterator[Sample]:
        """Each sample from now on. A reader that is slow misses some."""
        while True:
            await self._news.wait()
            if self._over:
                return
            yield self.samples[-1]

    def history(self) -> bytes:
        """All samples, as JSON: the fields' names, and a row for each."""
        return msgspec.json.encode({"fields": Sample._fields, "samples": list(self.samples)})

    def _count(self) -> _Counts:
        metrics, stats = self._metrics, self._client.stats
        return _Counts(
            metrics.prompt_tokens,
            metrics.generation_tokens,
            stats.prefix_queries,
            stats.prefix_hits,
            stats.host_hits,
            metrics.time_to_first_token.counts,
            metrics.inter_token_latency.counts,
        )


_SHARES = (0.5, 0.9, 0.99)
