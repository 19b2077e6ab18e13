"""Other hosts, as host 0 hears them."""

from __future__ import annotations

import asyncio
import socket

import pytest

from minisgl.engine.nodes import NodeHub
from minisgl.ipc.node_link import FromNode, RankEnd, connect_to_server

SECRET = "a secret of more than sixteen characters"


async def test_a_host_whose_words_do_harm_is_lost_and_may_come_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hub = NodeHub("127.0.0.1", port, SECRET, 2)
    lost: asyncio.Queue[int] = asyncio.Queue()

    def fail(message: FromNode) -> None:
        raise RuntimeError("nobody foresaw this")

    hub.on_message, hub.on_lost = fail, lost.put_nowait
    await hub.open()
    try:
        for _ in range(2):
            link = await connect_to_server("127.0.0.1", port, SECRET, 1)
            await asyncio.wait_for(hub.wait_all(), 20)
            link.send(RankEnd("group", 1, "was killed"))
            assert await asyncio.wait_for(lost.get(), 20) == 1
            assert hub.missing() == [1]
            link.close()
        assert "nobody foresaw this" in caplog.text
    finally:
        await hub.close()
