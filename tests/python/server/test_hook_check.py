"""The start finds out when Hypercorn doesn't run this server's connections."""

from __future__ import annotations

import asyncio
from types import FunctionType

import hypercorn.asyncio.run
import pytest

from minisgl.server import hook_check, listener
from minisgl.server.addresses import ListenError
from minisgl.server.connection import Connection
from minisgl.server.hook_check import check_hooks
from tests.python.waiting import PATIENCE


async def test_the_installed_one_does() -> None:
    await asyncio.wait_for(check_hooks(), PATIENCE)


async def test_another_place_of_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypercorn takes the class from elsewhere: our own is nobody's any more."""
    names = dict(vars(hypercorn.asyncio.run))
    names["TCPServer"] = hypercorn.asyncio.tcp_server.TCPServer
    serve = FunctionType(listener.worker_serve.__code__, names)
    serve.__kwdefaults__ = listener.worker_serve.__kwdefaults__
    monkeypatch.setattr(listener, "worker_serve", serve)
    monkeypatch.setattr(hook_check, "CHECK_SECONDS", 0.5)
    with pytest.raises(ListenError, match=r"Hypercorn 0\.18.* doesn't run .*<0\.19"):
        await check_hooks()


async def test_a_connection_without_its_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(self: Connection, data: bytes) -> None:
        pass

    monkeypatch.setattr(Connection, "write", nothing)
    monkeypatch.setattr(hook_check, "CHECK_SECONDS", 0.5)
    with pytest.raises(ListenError, match="doesn't run this server's HTTP protocol .answers"):
        await check_hooks()
