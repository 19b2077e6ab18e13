"""RankGroup over ranks that a launcher of the test's own starts: all that it needs of one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from minisgl.engine.api import EngineStartError
from minisgl.engine.group import RankGroup
from minisgl.engine.launcher import MakeLauncher, RankEvents, RankLauncher
from minisgl.ipc.messages import (
    Abort,
    EngineInfo,
    EngineOptions,
    EngineStats,
    Output,
    PhaseReport,
    Place,
    Ready,
    Shutdown,
    StepOutputs,
)

OPTIONS = EngineOptions(model_path="a model")


class PaperRanks:
    """Ranks without a process: each is ready at once, and rank 0 answers an abort."""

    def __init__(self, events: RankEvents) -> None:
        self.events = events
        self.places: list[Place] = []
        self.ends: list[str] = []

    async def start(self, options: EngineOptions, places: Sequence[Place]) -> None:
        if options.model_path == "nowhere":
            raise OSError("no host is free")
        self.places = list(places)
        self.events.phase(PhaseReport(phase="looking for hosts"))
        for place in places:
            info = EngineInfo(vocab_size=100 + place.rank, max_model_len=32)
            self.events.message(place.rank, Ready(info))

    def send(self, rank: int, message: Any) -> bool:
        if rank == 0 and isinstance(message, Abort):
            outputs = [Output(request_id, [], "abort") for request_id in message.ids]
            self.events.message(0, StepOutputs(outputs, EngineStats()))
        return rank == 0

    async def stop(self, farewell: Any | None) -> None:
        self.ends.append(f"stop {farewell}")

    def kill(self) -> None:
        self.ends.append("kill")

    async def close(self) -> None:
        self.ends.append("close")


_check: MakeLauncher = PaperRanks


async def test_a_group_is_whatever_its_launcher_starts() -> None:
    made: list[PaperRanks] = []
    phases: list[str] = []
    outputs: list[StepOutputs] = []

    def launcher(events: RankEvents) -> RankLauncher:
        made.append(PaperRanks(events))
        return made[0]

    group = RankGroup(
        OPTIONS,
        launcher=launcher,
        size=3,
        comm="tcp",
        on_phase=lambda report: phases.append(report.phase),
        on_outputs=outputs.append,
    )
    infos = await group.start()
    (ranks,) = made
    assert [info.vocab_size for info in infos] == [100, 101, 102]
    assert [(place.rank, place.size, place.comm) for place in ranks.places] == [
        (rank, 3, "tcp") for rank in range(3)
    ]
    assert phases == ["looking for hosts"]
    assert group.send(Abort([7]))
    assert [output.id for output in outputs[0].outputs] == [7]
    await group.stop()
    await group.close()
    assert ranks.ends == [f"stop {Shutdown()}", "kill", "close"]


async def test_the_end_of_one_rank_is_the_loss_of_the_group() -> None:
    made: list[PaperRanks] = []

    def launcher(events: RankEvents) -> RankLauncher:
        made.append(PaperRanks(events))
        return made[0]

    group = RankGroup(OPTIONS, launcher=launcher, size=2)
    await group.start()
    made[0].events.end(1, "was lost with its host")
    reason = await asyncio.wait_for(group.wait_lost(), 10)
    assert reason == "the process of rank 1 was lost with its host"
    await group.close()


async def test_a_launcher_that_has_no_room_is_one_sentence() -> None:
    options = EngineOptions(model_path="nowhere")
    group = RankGroup(options, launcher=PaperRanks)
    with pytest.raises(EngineStartError, match="can't be started: no host is free"):
        await group.start()
    await group.close()


async def test_a_group_whose_own_tasks_fail_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(group: RankGroup) -> None:
        raise RuntimeError("nobody foresaw this")

    made: list[PaperRanks] = []

    def launcher(events: RankEvents) -> RankLauncher:
        made.append(PaperRanks(events))
        return made[0]

    monkeypatch.setattr(RankGroup, "_explain", fail)
    group = RankGroup(OPTIONS, launcher=launcher, size=2)
    await group.start()
    made[0].events.end(1, "ended with status 3")
    reason = await asyncio.wait_for(group.wait_lost(), 20)
    assert "nobody foresaw this" in reason
    await group.close()
