"""Which processor cores each of several ranks gets."""

from __future__ import annotations

from collections.abc import Sequence


def divide_cores(cores: Sequence[int], count: int) -> list[list[int]]:
    """Disjoint runs of cores for `count` ranks, equally long. All empty, which means none in
    particular, for a single rank and where there are fewer cores than ranks.
    """
    each = len(cores) // count
    if count == 1 or each == 0:
        return [[] for _ in range(count)]
    ordered = sorted(cores)
    return [ordered[index * each : (index + 1) * each] for index in range(count)]
