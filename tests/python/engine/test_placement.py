"""Cores of ranks."""

from __future__ import annotations

import pytest

from minisgl.engine.placement import divide_cores


@pytest.mark.parametrize(
    ("cores", "count", "parts"),
    [
        ([0, 1, 2, 3], 2, [[0, 1], [2, 3]]),
        ([7, 2, 5], 2, [[2], [5]]),  # equally long
        ([4], 2, [[], []]),  # too few: none in particular
        ([0, 1, 2, 3], 1, [[]]),
    ],
)
def test_cores_are_divided_into_disjoint_runs(
    cores: list[int], count: int, parts: list[list[int]]
) -> None:
    assert divide_cores(cores, count) == parts
