"""RankGroup over ranks that a launcher of the test's own starts: all that it needs of one."""

from __future__ import annotations

import asyncio

import pytest

from minisgl.engine.api import EngineStartError
from minisgl.engine.group import Loss, RankGroup
from minisgl.engine.launcher import RankEvents, RankLauncher
from minisgl.ipc.messages import (
    Abort,
    EngineOptions,
    Failed,
    Shutdown,
    StepOutputs,
)
from tests.python.engine.paper_ranks import PaperRanks
from tests.python.waiting import PATIENCE

OPTIONS = EngineOptions(model_path="a model")


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
    made[0].events.end(1, "was killed by SIGKILL")
    assert group.lost
    loss = await asyncio.wait_for(group.wait_lost(), PATIENCE)
    assert loss == Loss("the process of rank 1 was killed by SIGKILL")
    await group.close()


async def test_a_rank_that_is_gone_is_lost_before_its_last_words() -> None:
    made: list[PaperRanks] = []

    def launcher(events: RankEvents) -> RankLauncher:
        made.append(PaperRanks(events))
        return made[0]

    group = RankGroup(OPTIONS, launcher=launcher)
    await group.start()
    assert not group.lost
    made[0].events.gone(0)
    assert group.lost
    await group.close()


async def test_a_host_out_of_reach_is_the_cause_of_what_its_ranks_and_others_say() -> None:
    made: list[PaperRanks] = []

    def launcher(events: RankEvents) -> RankLauncher:
        made.append(PaperRanks(events))
        return made[0]

    group = RankGroup(OPTIONS, launcher=launcher, size=4)
    await group.start()
    events = made[0].events
    events.end(2, "gave no sign of life for 7 s")
    events.message(0, Failed("rank 3 has died", 3))
    events.host_lost([2, 3], "host 1 was lost")
    loss = await asyncio.wait_for(group.wait_lost(), PATIENCE)
    assert loss == Loss("host 1 was lost", of_host=True)
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
    loss = await asyncio.wait_for(group.wait_lost(), PATIENCE)
    assert "nobody foresaw this" in loss.reason
    await group.close()


@pytest.mark.parametrize(
    ("first", "cause"),
    [
        # It only missed the other: what that one died of is the cause.
        (
            Failed("rank 1 has died", 1),
            "the process of rank 1 was killed by SIGKILL while starting",
        ),
        # It names the other, and blames nobody: this is the cause.
        (Failed("rank 1 has another model"), "rank 0: rank 1 has another model"),
        # It blames one that says nothing: then this is all that is known.
        (Failed("rank 2 has died", 2), "rank 0: rank 2 has died"),
    ],
)
async def test_a_loss_that_blames_another_lost_rank_is_not_the_cause(
    first: Failed, cause: str
) -> None:
    made: list[PaperRanks] = []

    def launcher(events: RankEvents) -> RankLauncher:
        made.append(PaperRanks(events))
        return made[0]

    group = RankGroup(OPTIONS, launcher=launcher, size=3)
    made[0].events.message(0, first)
    made[0].events.end(1, "was killed by SIGKILL")
    assert (await group.wait_lost()).reason == cause
    await group.close()
