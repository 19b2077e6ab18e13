"""The handshake between hosts: who is let in, and what both ends say where one isn't."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from minisgl.ipc import node_link
from minisgl.ipc.messages import Alive
from minisgl.ipc.node_link import (
    WIRE_VERSION,
    Hello,
    NodeLink,
    NodeLinkError,
    RankEnd,
    ReleaseMismatch,
    connect_to_server,
    greet_node,
)
from tests.python.waiting import PATIENCE

SECRET = "known to both of the hosts"


def fault(number: int) -> str:
    return "" if number in (1, 2) else f"{number} is nobody's number"


class Host0:
    """Greets whoever connects, and keeps what came of it."""

    def __init__(self) -> None:
        self.results: asyncio.Queue[NodeLink | NodeLinkError] = asyncio.Queue()
        self.port = 0

    async def admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.results.put_nowait(await greet_node(reader, writer, SECRET, fault))
        except NodeLinkError as error:
            writer.close()
            self.results.put_nowait(error)

    async def refusal(self) -> str:
        result = await asyncio.wait_for(self.results.get(), PATIENCE)
        assert isinstance(result, NodeLinkError)
        return str(result)


@contextlib.asynccontextmanager
async def host_0() -> AsyncIterator[Host0]:
    host = Host0()
    server = await asyncio.start_server(host.admit, "127.0.0.1", 0)
    host.port = server.sockets[0].getsockname()[1]
    try:
        yield host
    finally:
        server.close()


async def test_two_of_one_release_and_secret_talk() -> None:
    async with host_0() as host:
        node = await connect_to_server("127.0.0.1", host.port, SECRET, 2)
        server = await host.results.get()
        assert isinstance(server, NodeLink)
        assert server.node_rank == 2
        server.send(Alive())
        assert await node.receive_from_server() == Alive()
        node.send(RankEnd("group", 1, "was killed"))
        assert await server.receive_from_node() == RankEnd("group", 1, "was killed")
        node.close()
        server.close()


@pytest.mark.parametrize("other", [Hello("0.0.9", 1), Hello(wire=WIRE_VERSION + 1)])
async def test_two_releases_refuse_each_other_and_both_name_both(
    monkeypatch: pytest.MonkeyPatch, other: Hello
) -> None:
    async with host_0() as host:
        reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
        writer.write(other.pack())
        own = Hello()
        advice = "install the same release on every host"
        assert await host.refusal() == f"the peer runs {other} and host 0 runs {own}; {advice}"
        # What host 0 said, to a node of this release whose host 0 has the other one.
        assert Hello.unpack(await reader.readexactly(len(own.pack()))) == own
        writer.close()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(other.pack() + bytes(32))
        assert Hello.unpack(await reader.readexactly(len(own.pack()))) == own
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(ReleaseMismatch) as refusal:
        await connect_to_server("127.0.0.1", port, SECRET, 1)
    assert str(refusal.value) == f"host 0 runs {other} and this host runs {own}; {advice}"
    server.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"HTTP/1.1" + data[8:],
        lambda data: data[:12] + b"\x1b[31m\r\nforged line" + data[32:],
        lambda data: data[:12] + bytes(32),
    ],
)
async def test_what_is_no_hello_is_not_shown(spoil: Callable[[bytes], bytes]) -> None:
    async with host_0() as host:
        _, writer = await asyncio.open_connection("127.0.0.1", host.port)
        writer.write(spoil(Hello().pack()).ljust(44, b"\0"))
        sentence = await host.refusal()
        assert sentence.startswith("the peer is not minisgl, or a release before")
        assert "forged" not in sentence
        writer.close()


async def test_another_secret_is_named_at_host_0_and_hinted_at_on_the_other() -> None:
    async with host_0() as host:
        with pytest.raises(NodeLinkError, match=r"its log says why \(MINISGL_DIST_SECRET"):
            await connect_to_server("127.0.0.1", host.port, "what somebody else knows", 1)
        assert await host.refusal() == ("authentication failed: its MINISGL_DIST_SECRET differs")


async def test_a_number_that_has_no_place_is_turned_away() -> None:
    async with host_0() as host:
        with pytest.raises(NodeLinkError):
            await connect_to_server("127.0.0.1", host.port, SECRET, 3)
        assert await host.refusal() == "3 is nobody's number"


async def test_a_silent_peer_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_link, "HANDSHAKE_SECONDS", 0.2)
    async with host_0() as host:
        _, writer = await asyncio.open_connection("127.0.0.1", host.port)
        assert await host.refusal() == "the handshake timed out after 0.2 s"
        writer.close()
