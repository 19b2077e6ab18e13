"""Hypercorn in our own event loop: one socket, HTTP/1.1 only, an end that we decide on."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, cast

import hypercorn.asyncio.run
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.run import worker_serve
from hypercorn.config import Sockets
from starlette.types import ASGIApp

from minisgl.server.connection import Connection, HttpConfig
from minisgl.server.http1 import HttpSettings

BACKLOG = 2048
GRACEFUL_SECONDS = 3  # for responses that are still being written at the end


class ListenError(Exception):
    """The address can't be had. The message is one sentence for the one who started the server."""


def bind_socket(host: str, port: int) -> socket.socket:
    """A bound socket that doesn't listen yet. Raises ListenError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ListenError(
            f"--host {host!r} is neither an address nor a known name: {error}"
        ) from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _listen_error(host, port, error) from error
    return listener


def start_listening(listener: socket.socket) -> None:
    """From now on clients may connect and the port is nobody else's. Raises ListenError."""
    host, port = listener.getsockname()[:2]
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise _listen_error(host, port, error) from error


def _listen_error(host: str, port: int, error: OSError) -> ListenError:
    if error.errno == errno.EADDRINUSE:
        return ListenError(
            f"port {port} of {host} is taken by another program: end that one or choose another "
            "with --port"
        )
    if error.errno == errno.EACCES:
        return ListenError(f"this user may not listen on port {port}: choose another with --port")
    if error.errno == errno.EADDRNOTAVAIL:
        return ListenError(f"{host} is not an address of this machine: choose another with --host")
    return ListenError(f"minisgl can't listen on port {port} of {host}: {error.strerror}")


def url_of(listener: socket.socket) -> str:
    """Where clients find it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve_http(
    app: ASGIApp,
    listener: socket.socket,
    until: Callable[[], Awaitable[Any]],
    *,
    head_timeout: float = HttpSettings.head_timeout,
) -> None:
    """Serves until `until()` returns and responses had GRACEFUL_SECONDS to end. Owns the socket.

    A head that isn't complete `head_timeout` seconds after its first byte is answered with 408.
    """
    # The class is looked up there for each connection, and there is no setting for it: hook_check
    # proves at start that it is.
    hypercorn.asyncio.run.TCPServer = Connection  # type: ignore[assignment,attr-defined]
    config = HttpConfig(HttpSettings(app, head_timeout))
    config.backlog = BACKLOG
    config.graceful_timeout = GRACEFUL_SECONDS
    config.accesslog = None
    config.errorlog = _error_log()

    async def end() -> None:
        await until()
        config.connections.end()

    watch = asyncio.create_task(config.connections.watch())
    try:
        await worker_serve(
            ASGIWrapper(cast(Any, app)),
            config,
            sockets=Sockets([], [listener], []),
            shutdown_trigger=end,
        )
    finally:
        watch.cancel()


def _error_log() -> logging.Logger:
    logger = logging.getLogger("minisgl.http")
    logger.setLevel(logging.WARNING)  # its "Running on" is said by ourselves
    return logger
