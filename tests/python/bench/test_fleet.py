"""The simulated fleet, in small: its accounts, and what the router is chosen for."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[3] / "bench"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module("fleet")


@pytest.fixture(scope="module")
def small(fleet: Any) -> Any:
    return fleet.Plan(
        replicas=20, prefixes=300, warm=3.0, seconds=4.0, fill=30, cache_tokens=60_000
    )


@pytest.fixture(scope="module")
def reports(fleet: Any, small: Any) -> dict[str, Any]:
    return {name: fleet.Fleet(name, small).run() for name in ("prefix", "round", "ideal")}


def test_the_router_is_worth_it(reports: dict[str, Any]) -> None:
    assert reports["prefix"].hit_rate > 1.5 * reports["round"].hit_rate
    assert reports["prefix"].hit_rate > 0.9 * reports["ideal"].hit_rate
    assert reports["prefix"].percentile(0.99) < 0.5 * reports["round"].percentile(0.99)
    assert all(report.lost == 0 for report in reports.values())


def test_the_same_seed_gives_the_same(fleet: Any, small: Any, reports: dict[str, Any]) -> None:
    again = fleet.Fleet("prefix", small).run()
    assert again.ttft == reports["prefix"].ttft
    assert again.tokens == reports["prefix"].tokens
    assert fleet.Fleet("prefix", replace(small, seed=1)).run().ttft != again.ttft


def test_streams_of_replicas_that_end_go_on_elsewhere(fleet: Any, small: Any) -> None:
    report = fleet.Fleet("prefix", replace(small, deaths=4, rolled=10)).run()
    assert report.lost == 0
    assert report.gaps
    assert max(report.gaps) < 1.0


def test_a_replica_takes_the_time_that_was_measured(fleet: Any) -> None:
    conversation = fleet.Traffic(0, 10, fleet.CHATS).conversation(0)
    ended: list[float] = []
    first: list[float] = []
    replica = fleet.Replica(0, fleet.Cache(math.inf))
    due = replica.submit(fleet.Request(0, conversation, 2048, 101, 0.0, True), 0.0)
    while due is not None:
        due = replica.end_steps(
            due, lambda _, now: first.append(now), lambda _, now: ended.append(now)
        )
    assert first == [pytest.approx(0.0494, rel=0.05)]  # bench/HISTORY.md: 2,048 tokens, none cached
    assert ended == [pytest.approx(first[0] + 100 * fleet.STEP, rel=0.05)]
    assert replica.tokens == 2048 + 101
