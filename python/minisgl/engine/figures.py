"""The counters of several engines as those of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from minisgl.ipc.messages import EngineStats


def sum_stats(all_stats: Sequence[EngineStats]) -> EngineStats:
    """Counters and gauges of all together."""
    if len(all_stats) == 1:
        return all_stats[0]
    sums: dict[str, Any] = {}
    for name in (one.name for one in msgspec.structs.fields(EngineStats)):
        values = [getattr(stats, name) for stats in all_stats]
        if isinstance(getattr(_NONE, name), list):  # of (key, number)
            numbers: Counter[Any] = Counter()
            for key, number in (pair for pairs in values for pair in pairs):
                numbers[key] += number
            sums[name] = sorted(numbers.items())
        else:
            sums[name] = sum(values)
    return EngineStats(**sums)


_NONE = EngineStats()
