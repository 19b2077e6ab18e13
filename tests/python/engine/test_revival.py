"""What becomes of an engine over several hosts when one of them is lost and comes again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from minisgl.engine.client import EngineClient
from minisgl.engine.launcher import RankEvents
from minisgl.engine.revival import RestartPolicy
from minisgl.ipc.messages import (
    EngineOptions,
    EngineStats,
    Output,
    PhaseReport,
    Place,
    StepOutputs,
    Submit,
)
from minisgl.sampling_params import SamplingParams
from tests.python.engine.paper_ranks import PaperRanks
from tests.python.waiting import PATIENCE, until

REASON = "host 1 was lost: it gave no sign of life for 6 s"


class Hosts:
    """Two hosts with a rank each. Rank 0 makes a token per request and engine."""

    def __init__(self) -> None:
        self.back = asyncio.Event()  # host 1 is there
        self.back.set()
        self.load = True  # and the ranks get ready
        self.engines: list[HostedRanks] = []
        self.client = EngineClient(
            EngineOptions(model_path="a model"),
            size=2,
            launcher=lambda events: HostedRanks(events, self),
            restart=RestartPolicy(max_failures=0, first_delay=0.01, max_replays=1),
        )

    def lose(self) -> None:
        self.back.clear()
        self.engines[-1].events.host_lost([1], REASON)


class HostedRanks(PaperRanks):
    def __init__(self, events: RankEvents, hosts: Hosts) -> None:
        super().__init__(events)
        self.started = False
        self._hosts = hosts
        hosts.engines.append(self)

    async def start(self, options: EngineOptions, places: Sequence[Place]) -> None:
        if not self._hosts.back.is_set():
            self.events.phase(PhaseReport(phase="waiting for hosts [1]"))
        await self._hosts.back.wait()
        if self._hosts.load:
            await super().start(options, places)
        self.started = True

    def send(self, rank: int, message: Any) -> bool:
        if isinstance(message, Submit):
            step = StepOutputs([Output(message.id, [message.num_resumed])], EngineStats())
            asyncio.get_running_loop().call_soon(self.events.message, 0, step)
        return super().send(rank, message)


@pytest_asyncio.fixture
async def hosts() -> AsyncIterator[Hosts]:
    hosts = Hosts()
    await hosts.client.start(1)
    yield hosts
    await hosts.client.close()


async def test_a_host_that_is_lost_and_comes_again_is_no_failure_of_engine_or_request(
    hosts: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    client = hosts.client
    stream = client.submit([5], SamplingParams(max_tokens=20))
    await stream.next()
    for number in (1, 2):
        hosts.lose()
        assert client.state == "restarting"
        await until(lambda: client.phase == "waiting for hosts [1]")
        assert not stream.finished
        hosts.back.set()
        await until(lambda: client.state == "ready")
        await until(lambda: client.num_replaying == 0)
        assert client.num_restarts == number
    assert stream.received == [0, 1, 2]
    assert client.phase == ""
    assert f"{REASON}; starting it again when the host is back, within 1 s" in caplog.text


async def test_a_host_that_is_lost_while_the_engine_starts_again_is_none_either(
    hosts: Hosts,
) -> None:
    client = hosts.client
    hosts.load = False
    hosts.lose()
    hosts.back.set()
    await until(lambda: len(hosts.engines) == 2 and hosts.engines[1].started)
    hosts.lose()
    hosts.load = True
    hosts.back.set()
    await until(lambda: client.state == "ready")
    assert client.num_restarts == 1


async def test_a_host_that_stays_away_is_one(hosts: Hosts) -> None:
    stream = hosts.client.submit([5], SamplingParams(max_tokens=20))
    hosts.lose()
    assert "not ready within 1 s" in await asyncio.wait_for(hosts.client.wait_failed(), PATIENCE)
    assert stream.finish == "error"
