"""Metrics of each of several replicas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from minisgl.engine.api import ReplicaFigures


class _Kind(NamedTuple):
    name: str  # behind "minisgl:replica_"
    text: str
    value: Callable[[ReplicaFigures], float]


_GAUGES = (
    _Kind("up", "Whether the replica serves.", lambda one: one.state == "ready"),
    _Kind("num_streams", "Choices that the replica is to make.", lambda one: one.num_live),
    _Kind(
        "num_waiting_tokens",
        "Tokens of the replica's prompts that have no token of an answer yet.",
        lambda one: one.waiting_tokens,
    ),
    _Kind(
        "num_requests_running",
        "Requests in the replica's batch.",
        lambda one: one.stats.num_running,
    ),
    _Kind(
        "num_requests_waiting",
        "Requests that wait to get into the replica's batch.",
        lambda one: one.stats.num_waiting,
    ),
    _Kind(
        "kv_cache_usage_perc",
        "Share of the replica's KV cache that is in use, 0 to 1.",
        lambda one: one.stats.kv_cache_usage,
    ),
)
_COUNTERS = (
    _Kind("restarts", "Times that the replica was started again.", lambda one: one.num_restarts),
    _Kind(
        "prompt_tokens",
        "Prompt tokens that the replica computed, since it was started last.",
        lambda one: one.stats.prompt_tokens,
    ),
    _Kind(
        "generation_tokens",
        "Tokens that the replica generated, since it was started last.",
        lambda one: one.stats.generated_tokens,
    ),
    _Kind(
        "prefix_cache_queries",
        "Prompt tokens that were looked for in the replica's prefix cache.",
        lambda one: one.stats.prefix_queries,
    ),
    _Kind(
        "prefix_cache_hits",
        "Prompt tokens that were found there.",
        lambda one: one.stats.prefix_hits + one.stats.host_hits,
    ),
)


class ReplicaFamilies(Collector):
    """One sample per replica in each family."""

    def __init__(self, prefix: str, model_name: str, replicas: Sequence[ReplicaFigures]) -> None:
        self._prefix = prefix
        self._model_name = model_name
        self._replicas = replicas

    def collect(self) -> Iterator[Metric]:
        """Each family with its samples; none where there are no replicas."""
        if not self._replicas:
            return
        for kinds, make in ((_GAUGES, GaugeMetricFamily), (_COUNTERS, CounterMetricFamily)):
            for kind in kinds:
                family = make(
                    f"{self._prefix}:replica_{kind.name}",
                    kind.text,
                    labels=["model_name", "replica"],
                )
                for one in self._replicas:
                    family.add_metric([self._model_name, str(one.number)], kind.value(one))
                yield family
        models = GaugeMetricFamily(
            f"{self._prefix}:replica_model_info",
            "The model that the replica serves.",
            labels=["model_name", "replica", "model", "revision"],
        )
        for one in self._replicas:
            models.add_metric([self._model_name, str(one.number), one.model, one.revision], 1)
        yield models
        decisions = CounterMetricFamily(
            f"{self._prefix}:replica_decisions",
            "Requests that were sent to the replica, by why it was chosen.",
            labels=["model_name", "replica", "reason"],
        )
        for one in self._replicas:
            for reason, count in one.chosen.items():
                decisions.add_metric([self._model_name, str(one.number), reason], count)
        yield decisions
