"""Counts by bucket, made into Prometheus samples when scraped."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def bounds(milliseconds: str) -> tuple[float, ...]:
    """Upper bounds of buckets, in seconds."""
    return tuple(float(text) / 1000 for text in milliseconds.split())


# Of the time that a request takes.
REQUEST_S = bounds("10 50 100 300 500 800 1000 1500 2000 2500 5000 10000 20000 40000 60000 120000")


class Histogram:
    """Counts by bucket. Much cheaper than the library's: it is fed on the path of every token."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Adds `value`, `count` times."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    @property
    def sum(self) -> float:
        """Of all observations."""
        return self._sum

    @property
    def counts(self) -> tuple[int, ...]:
        """Observations in each bucket, the last without an upper bound."""
        return tuple(self._counts)

    def quantile(self, share: float, counts: Sequence[int]) -> float | None:
        """The value that `share` of so many observations in each bucket don't exceed, as if they
        were spread evenly within it; the last bound where they go beyond it. None: there are none.
        """
        left = share * sum(counts)
        if not left:
            return None
        low = 0.0
        for bound, count in zip(self._bounds, counts, strict=False):
            if count >= left:
                return low + (bound - low) * left / count
            left -= count
            low = bound
        return low

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), ending with +Inf."""
        cumulative, rows = 0, []
        for bound, count in zip(
            (*map(str, map(float, self._bounds)), "+Inf"), self._counts, strict=True
        ):
            cumulative += count
            rows.append((bound, float(cumulative)))
        return rows
