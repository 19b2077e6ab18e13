"""A group on another host: the server's end, a real agent, and the real rank program around a fake
engine. Both hosts are this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from minisgl import SamplingParams
from minisgl.engine.agent import Home, NodeAgent
from minisgl.engine.api import EngineStartError
from minisgl.engine.client import EngineClient
from minisgl.engine.linked_ranks import LinkedRanks
from minisgl.engine.nodes import FIRST_GUEST, NodeHub
from minisgl.engine.revival import RestartPolicy
from minisgl.engine.served_model import ServedModel
from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import EngineOptions, NamedModel
from minisgl.model_files.files import ModelError
from tests.python.engine import fake_rank
from tests.python.waiting import PATIENCE, until

SECRET = "a secret of more than sixteen characters"
COMMAND = (sys.executable, str(Path(fake_rank.__file__)))
OPTIONS = EngineOptions(model_path="what host 0 calls it")
MODEL = ServedModel("what host 0 calls it", "a model")


def find(named: NamedModel) -> str:
    """What a host calls a model that it was not started with."""
    if named.model == "nothing":
        raise ModelError("there is no model at 'nothing'")
    return f"fake:{named.model}"


def children(of: int) -> list[int]:
    """Ranks that run, by process id."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == of and "minisgl-TP" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return found


class Guest:
    """A host that has joined."""

    def __init__(self, hub: NodeHub, number: int) -> None:
        home = Home("fake:model", COMMAND, find)
        agent = NodeAgent(home, ("127.0.0.1", hub.port), SECRET, number, PATIENCE)
        self.work = asyncio.create_task(agent.run())

    async def leave(self) -> None:
        self.work.cancel()
        await asyncio.wait({self.work})


@contextlib.asynccontextmanager
async def guests(count: int) -> AsyncIterator[tuple[NodeHub, list[Guest]]]:
    hub = NodeHub("127.0.0.1", 0, SECRET, guests=True)
    await hub.open()
    there = [Guest(hub, FIRST_GUEST + index) for index in range(count)]
    try:
        yield hub, there
    finally:
        for guest in there:
            await guest.leave()
        await hub.close()


def client_of(hub: NodeHub, number: int = FIRST_GUEST) -> EngineClient:
    return EngineClient(
        OPTIONS,
        launcher=functools.partial(LinkedRanks, hub, number),
        restart=RestartPolicy(first_delay=0.05),
    )


def ask(client: EngineClient, first: int, count: int) -> TokenStream:
    return client.submit([first], SamplingParams(max_tokens=count, temperature=0.0))


async def tokens_of(stream: TokenStream) -> list[int]:
    output = await asyncio.wait_for(stream.next(whole=True), PATIENCE)
    assert output.error == ""
    return output.token_ids


async def test_a_host_ends_with_the_server_that_it_has_joined(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with guests(1) as (hub, (guest,)):
        client = client_of(hub)
        await client.start(20)
        await client.close()
        with caplog.at_level("INFO"):
            await hub.close()
            assert await asyncio.wait_for(guest.work, PATIENCE) == ""
    assert "host 0 has ended in order, and so does this host" in caplog.text


async def test_another_host_looks_for_a_model_that_it_was_not_started_with() -> None:
    async with guests(1) as (hub, _):

        def client(name: str) -> EngineClient:
            launcher = functools.partial(LinkedRanks, hub, FIRST_GUEST, model=NamedModel(name))
            return EngineClient(OPTIONS, launcher=launcher)

        other, missing, refused = client("another"), client("nothing"), client("refuse")
        try:
            await other.start(20)
            assert await tokens_of(ask(other, 5, 3)) == [6, 7, 8]
            with pytest.raises(EngineStartError, match="there is no model at 'nothing'"):
                await missing.start(20)
            with pytest.raises(EngineStartError, match="the model file is no good"):
                await refused.start(20)  # "fake:refuse", which the host has found
        finally:
            for one in (other, missing, refused):
                await one.close()


async def test_a_group_lives_on_another_host_from_start_to_end() -> None:
    async with guests(1) as (hub, _):
        client = client_of(hub)
        try:
            info = await client.start(PATIENCE)
            assert info.isa == "fake"
            assert await tokens_of(ask(client, 5, 20)) == list(range(6, 26))
            assert len(children(os.getpid())) == 1
            stream = ask(client, 7, 10_000)
            stream.abort()
            assert (await stream.next(whole=True)).finish == "abort"
        finally:
            await client.close()
        assert children(os.getpid()) == []


async def test_streams_go_on_when_a_rank_there_dies_or_the_host_is_lost() -> None:
    async with guests(1) as (hub, there):
        client = client_of(hub)
        try:
            await client.start(PATIENCE)
            stream = ask(client, fake_rank.KILL_ONCE, 30)
            first = fake_rank.KILL_ONCE + 1
            assert await tokens_of(stream) == [(first + n) % 1000 for n in range(30)]
            assert client.num_restarts == 1

            stream = ask(client, 5, 100)
            reading = asyncio.create_task(tokens_of(stream))
            await until(lambda: stream.received)
            await there[0].leave()
            there[0] = Guest(hub, FIRST_GUEST)
            assert await reading == [(6 + n) % 1000 for n in range(100)]
            await until(lambda: client.num_restarts == 2)
        finally:
            await client.close()


async def test_groups_of_one_host_live_and_die_apart() -> None:
    async with guests(1) as (hub, _):
        clients = [client_of(hub) for _ in range(2)]
        try:
            await asyncio.gather(*(client.start(PATIENCE) for client in clients))
            ranks = children(os.getpid())
            assert len(ranks) == 2
            streams = [ask(client, 5, 100) for client in clients]
            readings = [asyncio.create_task(tokens_of(stream)) for stream in streams]
            await until(lambda: all(stream.received for stream in streams))
            os.kill(ranks[0], signal.SIGKILL)
            for tokens in await asyncio.gather(*readings):
                assert tokens == [(6 + n) % 1000 for n in range(100)]
            await until(lambda: sorted(client.num_restarts for client in clients) == [0, 1])
            await until(lambda: all(client.state == "ready" for client in clients))
            await clients[0].close()
            assert await tokens_of(ask(clients[1], 5, 3)) == [6, 7, 8]
        finally:
            for client in clients:
                await client.close()
        assert children(os.getpid()) == []


async def test_the_start_says_which_host_it_waits_for() -> None:
    hub = NodeHub("127.0.0.1", 0, SECRET, guests=True)
    await hub.open()
    client = client_of(hub)
    try:
        with pytest.raises(Exception, match=f"waiting for host {FIRST_GUEST}"):
            await client.start(0.2)
    finally:
        await client.close()
        await hub.close()
