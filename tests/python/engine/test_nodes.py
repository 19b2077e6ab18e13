"""Other hosts, as host 0 hears them."""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from minisgl.engine import nodes
from minisgl.engine.host_ranks import HostRanks
from minisgl.engine.launcher import RankEvents
from minisgl.engine.nodes import FIRST_GUEST, NodeHub
from minisgl.ipc.messages import Alive, EngineInfo, EngineOptions, Place, Ready
from minisgl.ipc.node_link import (
    Farewell,
    NodeLink,
    NodeLinkError,
    OfGroup,
    RankEnd,
    RankGone,
    RankWord,
    StartRanks,
    connect_to_server,
)
from tests.python.waiting import PATIENCE

OPTIONS = EngineOptions(model_path="a model")
SECRET = "a secret of more than sixteen characters"


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


class Listener:
    """Keeps what is lost, and may fail at what it hears."""

    def __init__(self, fails: bool = False) -> None:
        self.lost: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
        self._fails = fails

    def hear(self, number: int, message: OfGroup) -> None:
        if self._fails:
            raise RuntimeError("nobody foresaw this")

    def lose_host(self, number: int, why: str) -> None:
        self.lost.put_nowait((number, why))


async def read_all(link: NodeLink) -> None:
    while True:
        await link.receive_from_server()


async def test_a_host_whose_words_do_harm_is_lost_and_may_come_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = NodeHub("127.0.0.1", 0, SECRET, 2)
    listener = Listener(fails=True)
    hub.listen("group", listener)
    await hub.open()
    try:
        for _ in range(2):
            link = await connect_to_server("127.0.0.1", hub.port, SECRET, 1)
            await asyncio.wait_for(hub.wait_for(1), 20)
            link.send(RankEnd("group", 1, "was killed"))
            assert (await asyncio.wait_for(listener.lost.get(), 20))[0] == 1
            assert hub.missing() == [1]
            link.close()
        assert "nobody foresaw this" in caplog.text
    finally:
        await hub.close()


async def test_a_host_that_is_silent_is_given_up_and_may_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nodes, "ALIVE_SECONDS", 0.05)
    hub = NodeHub("127.0.0.1", 0, SECRET, 3)
    listener = Listener()
    hub.listen("group", listener)
    lost = listener.lost
    await hub.open()
    links: list[NodeLink] = []
    try:
        links += [
            await connect_to_server("127.0.0.1", hub.port, SECRET, number) for number in (1, 2)
        ]
        await asyncio.wait_for(hub.wait_for(1, 2), 20)
        silent, alive = links

        async def show_life() -> None:
            while True:
                alive.send(Alive())
                await asyncio.sleep(0.05)

        pulse = asyncio.create_task(show_life())
        number, why = await asyncio.wait_for(lost.get(), 20)
        assert (number, why) == (1, f"it gave no sign of life for {nodes.SILENT_TICKS} s")
        assert hub.missing() == [1]
        with pytest.raises(NodeLinkError):  # it is told, as soon as it can be reached
            await asyncio.wait_for(read_all(silent), 20)
        links.append(await connect_to_server("127.0.0.1", hub.port, SECRET, 1))
        await asyncio.wait_for(hub.wait_for(1), 20)
        assert lost.empty()
        pulse.cancel()
    finally:
        await hub.close()
        for link in links:
            link.close()


def test_the_last_word_comes_through_whatever_a_host_is_sending() -> None:
    """The server ends before it has read all, and the host says more before it reads the rest."""
    sent, closed = threading.Event(), threading.Event()
    ports: queue.Queue[int] = queue.Queue()

    async def serve() -> None:
        hub = NodeHub("127.0.0.1", 0, SECRET, 2)
        await hub.open()
        ports.put(hub.port)
        await hub.wait_for(1)
        sent.wait(PATIENCE)  # reads nothing meanwhile
        await hub.close()

    def server() -> None:
        uvloop.run(serve())
        closed.set()

    async def take_part() -> None:
        link = await connect_to_server("127.0.0.1", ports.get(timeout=PATIENCE), SECRET, 1)
        link.send(Alive())
        await asyncio.sleep(0.05)  # until it is on its way
        sent.set()
        closed.wait(0.2)  # neither reads nor writes meanwhile
        link.send(Alive())
        await asyncio.sleep(0.05)
        while not isinstance(await link.receive_from_server(), Farewell):
            pass
        link.close()

    serving = threading.Thread(target=server, daemon=True)
    serving.start()
    uvloop.run(take_part())
    serving.join(PATIENCE)
    assert closed.is_set()


async def test_a_host_that_does_not_leave_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "FAREWELL_SECONDS", 0.05)
    hub = NodeHub("127.0.0.1", 0, SECRET, 2)
    await hub.open()
    link = await connect_to_server("127.0.0.1", hub.port, SECRET, 1)
    await hub.wait_for(1)
    await hub.close()
    with pytest.raises(NodeLinkError):
        await read_all(link)
    link.close()


async def test_what_the_ranks_of_another_host_say_and_become_is_told() -> None:
    told: list[tuple[Any, ...]] = []
    events = RankEvents(
        message=lambda rank, message: told.append((rank, message)),
        gone=lambda rank: told.append((rank, "gone")),
        end=lambda rank, how: told.append((rank, how)),
        host_lost=lambda ranks, reason: told.append((*ranks, reason)),
    )
    hub = NodeHub("127.0.0.1", 0, SECRET, 2)
    await hub.open()
    ranks = HostRanks(hub, (sys.executable, "-c", "import time; time.sleep(60)"), events)
    link = await connect_to_server("127.0.0.1", hub.port, SECRET, 1)
    try:
        await ranks.start(OPTIONS, [Place(rank=rank, size=2, name="group") for rank in (0, 1)])
        while not isinstance(message := await link.receive_from_server(), StartRanks):
            pass
        assert [place.rank for place in message.places] == [1]
        for word in (
            RankWord("group", 1, Ready(EngineInfo(vocab_size=5, max_model_len=5))),
            RankGone("an earlier group", 1),
            RankGone("group", 0),  # which is another host's
            RankGone("group", 1),
            RankEnd("group", 1, "was killed"),
        ):
            link.send(word)
        link.close()
        await asyncio.wait_for(until(lambda: len(told) == 4), 20)
        assert told == [
            (1, Ready(EngineInfo(vocab_size=5, max_model_len=5))),
            (1, "gone"),
            (1, "was killed"),
            (1, "host 1 was lost: the peer closed the connection"),
        ]
    finally:
        await ranks.close()
        await hub.close()


async def test_a_number_out_of_range_is_turned_away_with_the_range(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for nnodes, number, sentence in (
        (3, 3, "its --node-rank is 3; with --nnodes 3 it must be 1 to 2"),
        (1, 1, "it has ranks of a model to offer (--node-rank), and --nnodes is 1 here"),
        (3, FIRST_GUEST, f"its --node-rank is {FIRST_GUEST}; with --nnodes 3 it must be 1 to 2"),
    ):
        hub = NodeHub("127.0.0.1", 0, SECRET, nnodes)
        await hub.open()
        try:
            with pytest.raises(NodeLinkError):
                await connect_to_server("127.0.0.1", hub.port, SECRET, number)
            await until(lambda sentence=sentence: sentence in caplog.text)  # type: ignore[misc]
        finally:
            await hub.close()
