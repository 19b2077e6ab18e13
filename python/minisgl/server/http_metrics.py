"""Metrics of HTTP answers: this server's own, and those that dashboards for vLLM read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from minisgl.server.histogram import REQUEST_S, Histogram


class HttpMetrics(Collector):
    """Counts answers. Labels are known words: those that clients choose would grow without
    bounds.
    """

    def __init__(self) -> None:
        self._answers: Counter[tuple[str, str, int]] = Counter()  # by route, method and status
        self._seconds: dict[tuple[str, str], Histogram] = {}  # by route and method
        self._keys: Counter[int] = Counter()  # by the number of the API key

    def count(
        self, route: str, method: str, status: int, *, seconds: float, api_key: int | None
    ) -> None:
        """An answer that is over. `route` is a path's template, `seconds` the time from the
        request's head to the answer's end, `api_key` the number of the key that was sent.
        """
        self._answers[route, method, status] += 1
        self._seconds.setdefault((route, method), Histogram(REQUEST_S)).observe(seconds)
        if api_key is not None:
            self._keys[api_key] += 1

    def collect(self) -> Iterator[Metric]:
        """Each family with its samples."""
        own = CounterMetricFamily(
            "minisgl:http_requests",
            "HTTP requests that were answered, by the template of their path, method and status; "
            "499: the client had gone.",
            labels=["route", "method", "status"],
        )
        classes: Counter[tuple[str, str, str]] = Counter()
        for (route, method, status), number in self._answers.items():
            own.add_metric([route, method, str(status)], number)
            classes[route, method, f"{status // 100}xx"] += number
        yield own
        keys = CounterMetricFamily(
            "minisgl:api_key_requests",
            "HTTP requests by the number of their API key: those of --api-key from 0 on, then "
            "those of --api-key-file.",
            labels=["api_key"],
        )
        for key, number in sorted(self._keys.items()):
            keys.add_metric([str(key)], number)
        yield keys
        yield from self._as_vllm(classes)

    def _as_vllm(self, classes: Counter[tuple[str, str, str]]) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "http_requests",
            "HTTP requests that were answered, by handler, method and class of the status.",
            labels=["handler", "method", "status"],
        )
        for labels, number in classes.items():
            requests.add_metric(labels, number)
        yield requests
        duration = HistogramMetricFamily(
            "http_request_duration_seconds",
            "Time from a request's head to the end of its answer.",
            labels=["handler", "method"],
        )
        for route_and_method, histogram in self._seconds.items():
            duration.add_metric(route_and_method, histogram.buckets(), histogram.sum)
        yield duration
