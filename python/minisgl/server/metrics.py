"""Metrics: the one place for their names. Counted as plain integers, made into Prometheus samples
when scraped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from minisgl.server.histogram import REQUEST_S, Histogram, bounds
from minisgl.server.http_metrics import HttpMetrics
from minisgl.server.replica_metrics import ReplicaFamilies

if TYPE_CHECKING:
    from minisgl.engine.api import ReplicaFigures
    from minisgl.ipc.messages import EngineInfo, EngineStats, Timings

PREFIX = "minisgl"
FINISH_REASONS = ("stop", "length", "abort", "error")


# Upper bounds, in seconds and in tokens.
_FIRST_TOKEN_S = bounds("1 5 10 20 40 60 80 100 250 500 750 1000 2500 5000 7500 10000 20000 40000")
_TOKEN_S = bounds("1 2.5 5 10 25 50 75 100 150 200 300 400 500 750 1000 2500 5000")
_TOKENS = tuple(2**k for k in range(18))
# Those of vLLM, whose dashboards read them.
_INFERENCE_S = bounds(
    "300 500 800 1000 1500 2000 2500 5000 10000 15000 20000 30000 40000 50000 60000 120000 240000 "
    "480000 960000 1920000 7680000"
)
_LENGTHS = tuple(step * 10**power for power in range(7) for step in (1, 2, 5))
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_CHOICES = (1, 2, 5, 10, 20)


@dataclass(frozen=True)
class EngineFigures:
    """What the engine's client knows when the metrics are read."""

    stats: EngineStats  # after the latest step
    num_streams: int
    waiting_tokens: int
    num_replaying: int
    num_restarts: int
    info: EngineInfo | None = None  # None: it has not been ready yet
    memory_fraction: float = 0.0
    replicas: Sequence[ReplicaFigures] = ()


class Metrics:
    """What the HTTP side counts. Gauges come from the engine's latest stats when they are read."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.finished = dict.fromkeys(FINISH_REASONS, 0)
        self.http = HttpMetrics()
        self.time_to_first_token = Histogram(_FIRST_TOKEN_S)
        self.inter_token_latency = Histogram(_TOKEN_S)
        self.e2e_request_latency = Histogram(REQUEST_S)
        self.request_queue_time = Histogram(REQUEST_S)
        self.request_prefill_time = Histogram(REQUEST_S)
        self.request_decode_time = Histogram(REQUEST_S)
        self.request_prompt_tokens = Histogram(_TOKENS)
        self.request_generation_tokens = Histogram(_TOKENS)
        self.request_inference_time = Histogram(_INFERENCE_S)
        self.request_max_num_generation_tokens = Histogram(_LENGTHS)
        self.request_params_n = Histogram(_CHOICES)
        self.request_params_max_tokens = Histogram(_LENGTHS)
        self.iteration_tokens = Histogram(_STEP_TOKENS)

    def note_end(self, reason: str, seconds: float, timings: Timings | None) -> float | None:
        """A request of the engine's has ended, so long after its arrival. Returns how long it
        waited for its first step; None where `timings` doesn't say.
        """
        self.finished[reason] += 1
        self.e2e_request_latency.observe(seconds)
        if timings is None:
            return None
        queue, prefill, decode = timings
        self.request_queue_time.observe(queue)
        self.request_prefill_time.observe(prefill)
        self.request_decode_time.observe(decode)
        self.request_inference_time.observe(prefill + decode)
        return queue

    def render(self, model_name: str, figures: EngineFigures, *, alias: str = "") -> bytes:
        """The text format of Prometheus. `alias` is a second prefix, under which what vLLM has too
        appears again ("vllm" serves existing dashboards). Belongs to the server's event loop, whose
        tasks it counts.
        """
        registry = CollectorRegistry()
        for prefix in dict.fromkeys((PREFIX, alias) if alias else (PREFIX,)):
            registry.register(_Families(self, prefix, model_name, figures))
        registry.register(_OwnFamilies(model_name, figures))
        registry.register(ReplicaFamilies(PREFIX, model_name, figures.replicas))
        registry.register(self.http)
        ProcessCollector(registry=registry)
        return generate_latest(registry)


class _Families(Collector):
    """What vLLM has too, under one prefix."""

    def __init__(
        self, metrics: Metrics, prefix: str, model_name: str, figures: EngineFigures
    ) -> None:
        self._metrics = metrics
        self._prefix = prefix
        self._labels = {"model_name": model_name, "engine": "0"}  # vLLM numbers its replicas
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Each family with its samples."""
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()

    def _gauges(self) -> Iterator[Metric]:
        stats = self._figures.stats
        for name, text, value in (
            ("num_requests_running", "Requests in the engine's batch.", stats.num_running),
            (
                "num_requests_waiting",
                "Requests that wait to get into the batch.",
                stats.num_waiting,
            ),
            (
                "kv_cache_usage_perc",
                "Share of the KV cache that is in use, 0 to 1.",
                stats.kv_cache_usage,
            ),
        ):
            yield self._gauge(name, text, {}, value)
        # Only capacity holds a request up here.
        waiting = self._gauge(
            "num_requests_waiting_by_reason",
            "Requests that wait to get into the batch, by what they wait for.",
            {"reason": "capacity"},
            stats.num_waiting,
        )
        waiting.add_metric([*self._labels.values(), "deferred"], 0)
        yield waiting
        if (info := self._figures.info) is not None:
            cache = {
                "block_size": info.page_size,
                "cache_dtype": info.kv_dtype,
                "enable_prefix_caching": info.prefix_cache,
                "gpu_memory_utilization": self._figures.memory_fraction,
                "kv_cache_memory_bytes": info.kv_cache_bytes,
                "num_cpu_blocks": 0,
                "num_gpu_blocks": info.num_pages,
            }
            text = "What the KV cache is like: pages, whatever device they are on."
            yield self._gauge("cache_config_info", text, cache, 1)

    def _gauge(
        self, name: str, text: str, labels: Mapping[str, object], value: float
    ) -> GaugeMetricFamily:
        everything = self._labels | {label: str(content) for label, content in labels.items()}
        gauge = GaugeMetricFamily(f"{self._prefix}:{name}", text, labels=list(everything))
        gauge.add_metric(list(everything.values()), value)
        return gauge

    def _counters(self) -> Iterator[Metric]:
        metrics, stats = self._metrics, self._figures.stats
        for name, text, value in (
            ("prompt_tokens", "Prompt tokens of requests that were served.", metrics.prompt_tokens),
            ("generation_tokens", "Tokens that were generated.", metrics.generation_tokens),
            (
                "num_preemptions",
                "Times that a request was put back because there were no free KV pages.",
                stats.num_preemptions,
            ),
            (
                "spec_decode_num_drafts",
                "Times that tokens of an answer were tried as drafts.",
                stats.num_drafts,
            ),
            (
                "spec_decode_num_draft_tokens",
                "Tokens that were tried as drafts.",
                stats.draft_tokens,
            ),
            (
                "spec_decode_num_accepted_tokens",
                "Of these, tokens of answers.",
                stats.accepted_tokens,
            ),
            (
                "prefix_cache_queries",
                "Prompt tokens that were looked for in the prefix cache.",
                stats.prefix_queries,
            ),
            (
                "prefix_cache_hits",
                "Prompt tokens that were found there.",
                stats.prefix_hits + stats.host_hits,
            ),
        ):
            counter = CounterMetricFamily(f"{self._prefix}:{name}", text, labels=list(self._labels))
            counter.add_metric(list(self._labels.values()), value)
            yield counter
        places = CounterMetricFamily(
            f"{self._prefix}:spec_decode_num_accepted_tokens_per_pos",
            "The same by place behind the last known token.",
            labels=[*self._labels, "position"],
        )
        for position, value in stats.accepted_at:
            places.add_metric([*self._labels.values(), str(position)], value)
        yield places
        success = CounterMetricFamily(
            f"{self._prefix}:request_success",
            "Requests that ended, by reason.",
            labels=[*self._labels, "finished_reason"],
        )
        for reason, number in metrics.finished.items():
            success.add_metric([*self._labels.values(), reason], number)
        yield success

    def _histograms(self) -> Iterator[Metric]:
        metrics = self._metrics
        for name, text, histogram in (
            (
                "time_to_first_token_seconds",
                "Time from a request's arrival to its first token.",
                metrics.time_to_first_token,
            ),
            (
                "inter_token_latency_seconds",
                "Time between two tokens of a request.",
                metrics.inter_token_latency,
            ),
            (
                "e2e_request_latency_seconds",
                "Time from a request's arrival to its end.",
                metrics.e2e_request_latency,
            ),
            (
                "request_queue_time_seconds",
                "Time that a request waited for its first step.",
                metrics.request_queue_time,
            ),
            (
                "request_prefill_time_seconds",
                "Time from a request's first step to its first token.",
                metrics.request_prefill_time,
            ),
            (
                "request_decode_time_seconds",
                "Time from a request's first token to its end.",
                metrics.request_decode_time,
            ),
            ("request_prompt_tokens", "Prompt tokens of a request.", metrics.request_prompt_tokens),
            (
                "request_generation_tokens",
                "Tokens that were generated for a request.",
                metrics.request_generation_tokens,
            ),
            (
                "request_inference_time_seconds",
                "Time from a request's first step to its end.",
                metrics.request_inference_time,
            ),
            (
                "request_max_num_generation_tokens",
                "Tokens of the longest of a request's choices.",
                metrics.request_max_num_generation_tokens,
            ),
            ("request_params_n", "Choices that a request asked for.", metrics.request_params_n),
            (
                "request_params_max_tokens",
                "Tokens that a choice could have at most.",
                metrics.request_params_max_tokens,
            ),
            (
                "iteration_tokens_total",
                "Tokens of a step: new ones, and prompts that it completed.",
                metrics.iteration_tokens,
            ),
        ):
            family = HistogramMetricFamily(
                f"{self._prefix}:{name}", text, labels=list(self._labels)
            )
            family.add_metric(list(self._labels.values()), self._buckets(histogram), histogram.sum)
            yield family

    def _buckets(self, histogram: Histogram) -> list[tuple[str, float]]:
        """Those that something can be in: no request has more tokens than the model takes."""
        info, metrics = self._figures.info, self._metrics
        lengths = (metrics.request_max_num_generation_tokens, metrics.request_params_max_tokens)
        limit = info.max_model_len if info and histogram in lengths else float("inf")
        return [row for row in histogram.buckets() if row[0] == "+Inf" or float(row[0]) <= limit]


class _OwnFamilies(Collector):
    """What this server has and vLLM hasn't: under its own prefix alone."""

    def __init__(self, model_name: str, figures: EngineFigures) -> None:
        self._model_name = model_name
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Each family with its samples."""
        figures, labels, values = self._figures, ["model_name"], [self._model_name]
        by_priority = GaugeMetricFamily(
            f"{PREFIX}:num_requests_waiting_by_priority",
            "Requests that wait to get into the batch, by their priority; lower goes first.",
            labels=[*labels, "priority"],
        )
        for priority, number in figures.stats.waiting_by_priority:
            by_priority.add_metric([*values, str(priority)], number)
        yield by_priority
        for name, text, value in (
            (
                "num_waiting_tokens",
                "Tokens of the prompts that have no token of an answer yet.",
                figures.waiting_tokens,
            ),
            ("num_streams", "Choices that the server waits for.", figures.num_streams),
            (
                "num_requests_replaying",
                "Choices whose engine has died and that no other one has gone on with yet.",
                figures.num_replaying,
            ),
            ("num_tasks", "Tasks of the server's event loop.", len(asyncio.all_tasks())),
        ):
            gauge = GaugeMetricFamily(f"{PREFIX}:{name}", text, labels=labels)
            gauge.add_metric(values, value)
            yield gauge
        for name, text, value in (
            (
                "engine_restarts",
                "Engines that were started for one that had died.",
                figures.num_restarts,
            ),
            (
                "engine_steps",
                "Steps of the engine, since it was started last.",
                figures.stats.num_steps,
            ),
        ):
            counter = CounterMetricFamily(f"{PREFIX}:{name}", text, labels=labels)
            counter.add_metric(values, value)
            yield counter
        step = SummaryMetricFamily(
            f"{PREFIX}:engine_step_seconds",
            "Time of a step, since the engine was started last; overlapping ones count once.",
            labels=labels,
        )
        step.add_metric(values, figures.stats.num_steps, figures.stats.step_seconds)
        yield step
        drafting = CounterMetricFamily(
            f"{PREFIX}:speculation_seconds",
            "Time in finding drafts, since the engine was started last.",
            labels=labels,
        )
        drafting.add_metric(values, figures.stats.draft_seconds)
        yield drafting
        yield from self._prefix_cache()

    def _prefix_cache(self) -> Iterator[Metric]:
        """The tiers of the prefix cache: the device's memory, and the host's (--kv-host-bytes)."""
        stats, since = self._figures.stats, ", since the engine was started last."
        pages = GaugeMetricFamily(
            f"{PREFIX}:prefix_cache_pages",
            "Pages in the prefix cache, by tier, whether or not requests have them, too.",
            labels=["model_name", "tier"],
        )
        for tier, number in (("device", stats.pages_cached), ("host", stats.host_pages_cached)):
            pages.add_metric([self._model_name, tier], number)
        yield pages
        for name, text, label, samples in (
            (
                "prefix_cache_queried_tokens",
                "Prompt tokens that were looked for in a tier",
                "tier",
                (("device", stats.prefix_queries), ("host", stats.host_queries)),
            ),
            (
                "prefix_cache_hit_tokens",
                "Prompt tokens that were found in a tier",
                "tier",
                (("device", stats.prefix_hits), ("host", stats.host_hits)),
            ),
            (
                "prefix_cache_evicted_tokens",
                "Tokens whose pages a tier gave up",
                "tier",
                (("device", stats.prefix_evictions), ("host", stats.host_evictions)),
            ),
            (
                "prefix_cache_copied_bytes",
                "Bytes that rank 0 copied between the tiers",
                "to",
                (("host", stats.host_bytes_out), ("device", stats.host_bytes_in)),
            ),
        ):
            counter = CounterMetricFamily(
                f"{PREFIX}:{name}", text + since, labels=["model_name", label]
            )
            for value, number in samples:
                counter.add_metric([self._model_name, value], number)
            yield counter
