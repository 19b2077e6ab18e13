"""Replicas that come and go by what there is to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from minisgl.engine import scaling
from minisgl.engine.api import ReplicaFigures
from minisgl.engine.replicas import Replicas
from minisgl.engine.scaling import LOOKS_BEFORE_LESS, LOOKS_BEFORE_MORE, Bounds, Scaler
from minisgl.ipc.messages import EngineStats, Output, StepOutputs
from minisgl.sampling_params import SamplingParams
from tests.python.engine.paper_engines import PaperSite, paper_changes, paper_replicas

FULL = EngineStats(num_running=4, num_waiting=2, pages_total=100, pages_free=50)
CROWDED = EngineStats(num_running=1, pages_total=100, pages_free=5)
BUSY = EngineStats(num_running=4, pages_total=100, pages_free=50)


@dataclass
class Stage:
    site: PaperSite
    replicas: Replicas
    scaler: Scaler

    def load(self, count: int, stats: EngineStats) -> None:
        """So many requests, and what each engine says of its steps."""
        for _ in range(count):
            self.replicas.submit([1], SamplingParams(max_tokens=100))
        for engine in self.site.alive():
            outputs = [Output(request, [5]) for request in list(engine.requests)[:1]]
            engine.events.message(0, StepOutputs(outputs, stats))

    async def look(self, times: int) -> str:
        """What came of the last of several looks."""
        for number in range(times):
            change = self.scaler.look()
            assert change is None or number == times - 1
        if change is None:
            return ""
        return [event["state"] async for event in change.events()][-1]

    @property
    def numbers(self) -> list[int]:
        return [one.number for one in self.replicas.replicas]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    site = PaperSite(room=3)
    replicas = paper_replicas(site, 1)
    await replicas.start(None)
    changes = paper_changes(replicas)
    yield Stage(site, replicas, Scaler(changes, Bounds(1, 4, 0.0)))
    await changes.close()
    await replicas.close()


@pytest.mark.parametrize("stats", [FULL, CROWDED])
async def test_one_is_added_where_all_have_too_much_for_a_while(
    stage: Stage, stats: EngineStats
) -> None:
    stage.load(3, stats)
    assert await stage.look(LOOKS_BEFORE_MORE - 1) == ""
    assert await stage.look(1) == "ready"
    assert stage.numbers == [0, 1]
    # The new one has nothing to do: the two are not both full.
    assert await stage.look(3 * LOOKS_BEFORE_MORE) == ""


async def test_none_is_added_for_a_moment_or_beyond_the_bound_or_the_room(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.load(3, FULL)
    await stage.look(LOOKS_BEFORE_MORE - 1)
    stage.load(0, BUSY)
    assert await stage.look(1) == ""
    stage.load(0, FULL)
    assert await stage.look(LOOKS_BEFORE_MORE - 1) == ""
    stage.load(0, BUSY)
    await stage.look(1)
    for _ in range(3):
        stage.load(4, FULL)
        await stage.look(LOOKS_BEFORE_MORE)
    assert stage.numbers == [0, 1, 2]
    assert caplog.text.count("no replica can be added") == 1
    assert "all paper is written on" in caplog.text


async def test_one_goes_where_the_others_have_room_to_spare_for_long(stage: Stage) -> None:
    stage.load(3, FULL)
    await stage.look(LOOKS_BEFORE_MORE)
    for engine in stage.site.alive():
        while engine.requests:
            engine.step()
    assert await stage.look(LOOKS_BEFORE_LESS - 1) == ""
    assert await stage.look(1) == "removed"
    assert stage.numbers == [0]
    assert await stage.look(2 * LOOKS_BEFORE_LESS) == ""  # the last one stays


async def test_the_loop_does_what_a_look_begins(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "LOOK_SECONDS", 0.001)
    stage.load(3, FULL)
    running = asyncio.create_task(stage.scaler.run())
    while stage.numbers != [0, 1]:
        await asyncio.sleep(0.001)
    running.cancel()


def test_an_idle_replica_uses_nothing_whatever_its_last_step_said() -> None:
    idle = ReplicaFigures(0, "ready", "", "", "", "", 0, 0, 0, 0, FULL, {})
    assert scaling.usage(idle) == 0.0
    assert not scaling.are_full([idle])
