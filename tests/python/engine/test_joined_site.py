"""Places on hosts that have joined."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from minisgl.engine.agent import Home, NodeAgent
from minisgl.engine.client import EngineClient
from minisgl.engine.joined_site import JoinedSite, guest_number, report_of
from minisgl.engine.nodes import NodeHub
from minisgl.engine.placement import Accountant, Gpu, Machine, NoRoom
from minisgl.engine.site import LocalSite
from minisgl.ipc.node_link import GpuReport, HostReport
from tests.python.engine import fake_rank
from tests.python.engine.test_linked_ranks import MODEL, OPTIONS, SECRET, ask, find, tokens_of
from tests.python.waiting import PATIENCE, until

COMMAND = (sys.executable, str(Path(fake_rank.__file__)))
HERE = Machine((0,))


def site_of(hub: NodeHub, ranks: int = 1) -> JoinedSite:
    """One replica has room here."""
    return JoinedSite(LocalSite(Accountant(HERE, ranks, 1), COMMAND), hub, ranks, 0)


def test_a_host_says_what_it_has() -> None:
    gpus = (Gpu("0", (1, 2), frozenset({1})), Gpu("GPU-uuid"))
    report = report_of(Machine((1, 2, 3), gpus), groups=2)
    assert (report.cores, report.groups) == ([1, 2, 3], 2)
    assert report.gpus == [GpuReport("0", [1, 2], [1]), GpuReport("GPU-uuid")]
    assert guest_number(SECRET, "a") == guest_number(SECRET, "a") != guest_number(SECRET, "b")


def test_replicas_get_what_a_host_has_and_no_more() -> None:
    hub = NodeHub("127.0.0.1", 0, SECRET, guests=True)
    site = site_of(hub, ranks=2)
    here = site.take(0)
    with pytest.raises(NoRoom, match="belong to replicas"):
        site.take(1)
    gpus = [GpuReport(str(number)) for number in range(4)]
    hub.reports[2000] = HostReport(name="near", cores=[0, 1], gpus=gpus)
    hub.reports[3000] = HostReport(name="far", cores=[0, 1], groups=1)
    lots = [site.take(number) for number in range(1, 4)]
    assert [str(lot) for lot in lots] == [
        "host near, GPU 0, 1, any core",
        "host near, GPU 2, 3, any core",
        "host far, CPU, cores 0-1",
    ]
    with pytest.raises(
        NoRoom, match="on host near: a replica of 2 ranks needs 2 GPUs.*on host far"
    ):
        site.take(4)
    lots[1].give_back()
    assert str(site.take(5)) == "host near, GPU 2, 3, any core"
    here.give_back()
    assert str(site.take(6)).startswith("CPU")
    del hub.reports[2000], hub.reports[3000]  # they are gone
    with pytest.raises(NoRoom):
        site.take(7)


async def test_a_replica_serves_on_a_host_that_has_joined_and_comes_again() -> None:
    hub = NodeHub("127.0.0.1", 0, SECRET, guests=True)
    await hub.open()

    def join() -> asyncio.Task[str]:
        home, report = Home("fake:model", COMMAND, find), report_of(Machine((0, 1)), groups=1)
        number = guest_number(SECRET, report.name)
        address = ("127.0.0.1", hub.port)
        return asyncio.create_task(NodeAgent(home, address, SECRET, number, PATIENCE, report).run())

    guest = join()
    client = None
    try:
        await until(lambda: len(hub.reports) == 1)
        site = site_of(hub)
        site.take(0)
        lot = site.take(1)
        client = EngineClient(lot.fit(OPTIONS), launcher=lot.launcher(MODEL))
        await client.start(PATIENCE)
        assert await tokens_of(ask(client, 5, 3)) == [6, 7, 8]
        stream = ask(client, 5, 100)
        reading = asyncio.create_task(tokens_of(stream))
        await until(lambda: stream.received)
        guest.cancel()
        await asyncio.wait({guest})
        await until(lambda: not hub.reports)
        guest = join()
        assert await reading == [(6 + number) % 1000 for number in range(100)]
    finally:
        if client is not None:
            await client.close()
        guest.cancel()
        await asyncio.wait({guest})
        await hub.close()
