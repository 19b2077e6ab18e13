"""The start finds out when Hypercorn doesn't run this server's protocol."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import hypercorn.asyncio.tcp_server
import pytest
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H11Protocol

from minisgl.server import hook_check
from minisgl.server.hook_check import HOOKS, check_hooks
from minisgl.server.listener import Http1Protocol, ListenError


async def test_the_installed_one_does() -> None:
    await asyncio.wait_for(check_hooks(), 5)


async def test_all_that_the_protocol_overrides_is_checked() -> None:
    own = {name for name, value in vars(Http1Protocol).items() if inspect.isfunction(value)}
    assert {name for name in own if hasattr(H11Protocol, name)} == set(HOOKS)


async def test_another_place_of_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrapper imports the class directly: our own is nobody's any more."""

    class Elsewhere(ProtocolWrapper):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            app, config, context, group, state, ssl, client, server, send, _ = args
            self.protocol = H11Protocol(
                app, config, context, group, state, ssl, client, server, send
            )

    monkeypatch.setattr(hypercorn.asyncio.tcp_server, "ProtocolWrapper", Elsewhere)
    monkeypatch.setattr(hook_check, "CHECK_SECONDS", 0.5)
    with pytest.raises(ListenError, match=r"Hypercorn 0\.18.*handle, .* not called.*<0\.19"):
        await check_hooks()


@pytest.mark.parametrize("name", HOOKS)
async def test_another_name_of_a_method(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Hypercorn calls its own method by a name that nothing overrides."""
    method: Callable[..., Awaitable[None]] = getattr(H11Protocol, name)

    def renamed(self: H11Protocol, attribute: str) -> Any:
        if attribute == name:
            return method.__get__(self)
        return object.__getattribute__(self, attribute)

    monkeypatch.setattr(H11Protocol, "__getattribute__", renamed, raising=False)
    monkeypatch.setattr(hook_check, "CHECK_SECONDS", 0.5)
    with pytest.raises(ListenError, match=f"{name} not called"):
        await check_hooks()


async def test_a_hook_without_its_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(self: Http1Protocol) -> None:
        pass

    monkeypatch.setattr(Http1Protocol, "_refuse_slow_head", nothing)
    monkeypatch.setattr(hook_check, "CHECK_SECONDS", 0.5)
    with pytest.raises(ListenError, match="doesn't run this server's HTTP protocol .answers"):
        await check_hooks()
