"""Hypercorn in our own event loop: our sockets and connections, an end that we decide on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import hypercorn.asyncio.run
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.run import worker_serve
from hypercorn.config import Sockets
from starlette.types import ASGIApp

from minisgl.server.addresses import BACKLOG, Listener
from minisgl.server.connection import Connection, Connections, HttpConfig
from minisgl.server.wire import HttpSettings

GRACEFUL_SECONDS = 3  # for responses that are still being written at the end
HANDSHAKE_SECONDS = 10  # of TLS
# Connections that are accepted in a turn of the loop. uvloop accepts one per socket, and where many
# streams run a turn takes milliseconds: those who come at once would wait for each other.
ACCEPTED_AT_ONCE = 16


async def serve_http(
    app: ASGIApp,
    listener: Listener,
    until: Callable[[], Awaitable[Any]],
    *,
    head_timeout: float = HttpSettings.head_timeout,
) -> None:
    """Serves until `until()` returns and responses had GRACEFUL_SECONDS to end.

    A head that isn't complete `head_timeout` seconds after its first byte is answered with 408.
    """
    # The class is looked up there for each connection, and there is no setting for it: hook_check
    # proves at start that it is.
    hypercorn.asyncio.run.TCPServer = Connection  # type: ignore[assignment,attr-defined]
    connections = Connections(listener.max_connections)
    config = HttpConfig(HttpSettings(app, head_timeout), connections, listener.tls)
    config.backlog = BACKLOG
    config.graceful_timeout = GRACEFUL_SECONDS
    config.ssl_handshake_timeout = HANDSHAKE_SECONDS
    config.accesslog = None
    config.errorlog = _error_log()

    async def end() -> None:
        await until()
        connections.end()

    sockets = [one.dup() for one in listener.sockets for _ in range(ACCEPTED_AT_ONCE)]
    plain, encrypted = (sockets, []) if listener.tls is None else ([], sockets)
    watch = asyncio.create_task(connections.watch())
    try:
        await worker_serve(
            ASGIWrapper(_no_lifespan),
            config,
            sockets=Sockets(encrypted, plain, []),
            shutdown_trigger=end,
        )
    except asyncio.InvalidStateError:
        # Hypercorn was cancelled while it waited for connections, and asked them for their outcome.
        raise asyncio.CancelledError from None
    finally:
        watch.cancel()


async def _no_lifespan(*_: object) -> None:
    """The application as Hypercorn itself calls it, which is for its lifespan only: connections
    have theirs from HttpConfig. Hypercorn forgets a lifespan that goes on when it is cancelled.
    """


def _error_log() -> logging.Logger:
    logger = logging.getLogger("minisgl.http")
    logger.setLevel(logging.WARNING)  # its "Running on" is said by ourselves
    return logger
