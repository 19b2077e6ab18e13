"""What the benchmark of a killed rank makes of the times at which tokens came."""

from __future__ import annotations

import importlib
from pathlib import Path
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
