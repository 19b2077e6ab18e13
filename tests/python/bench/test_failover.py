"""What the benchmark of a killed rank makes of the times at which tokens came."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCH = Path(__file__).parents[3] / "bench"


@pytest.fixture
def failover(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("failover")


@pytest.mark.parametrize(
    ("sent", "arrivals", "gap"),
    [
        (0.0, [9.9, 9.99, 10.01, 10.02, 13.0, 13.1], 2.98),  # two tokens were on their way
        (0.0, [9.9, 9.99, 13.0, 13.1], 3.01),  # none was
        (0.0, [9.0, 9.1, 10.5], 1.4),  # slow before the kill, quick after it
        (9.5, [12.0, 12.1], 2.5),  # no token yet at the kill
        (0.0, [8.0, 11.0, 11.1, 15.0], 3.9),  # another one afterwards is longer
    ],
)
def test_the_longest_gap_since_the_kill(
    failover: Any, sent: float, arrivals: list[float], gap: float
) -> None:
    assert failover.longest_gap(sent, arrivals, 10.0) == pytest.approx(gap)


def stream_of(ids: Sequence[Sequence[int]], counted: int) -> Any:
    """A stream whose events brought these ids; the server counted so many."""
    bodies: list[dict[str, Any]] = [
        {"choices": [{"text": "", "token_ids": list(some)}], "usage": None} for some in ids
    ]
    bodies.append({"choices": [], "usage": {"completion_tokens": counted}})
    events = [
        SimpleNamespace(data=json.dumps(body), arrived=float(i)) for i, body in enumerate(bodies)
    ]
    return SimpleNamespace(events=lambda: events)


@pytest.mark.parametrize(
    ("ids", "counted", "whole"),
    [
        ([[1], [2, 3], [4]], 4, True),
        ([[1], [2], [2, 3], [4]], 4, False),  # one came twice
        ([[1], [4]], 4, False),  # two never came
        ([[1], [2]], 2, False),  # it ended early
    ],
)
def test_tokens_that_never_came_or_came_twice(
    failover: Any, ids: list[list[int]], counted: int, whole: bool
) -> None:
    assert (failover.fault_of(stream_of(ids, counted), 4) == "") == whole


def test_gaps_are_those_that_end_after_the_kill(failover: Any) -> None:
    streams = [stream_of([[1]] * 3, 3), stream_of([[1]], 1)]
    assert failover.gaps_since(0.5, streams) == [1.0, 1.0, 1.0, 1.0]
    assert failover.gaps_since(1.0, streams) == [1.0, 1.0]
