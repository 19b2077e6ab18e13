"""Hypercorn in our own event loop: one socket, HTTP/1.1 only, an end that we decide on."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, cast

import h11
import hypercorn.protocol
from hypercorn.asyncio import serve
from hypercorn.config import Config, Sockets
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from starlette.types import ASGIApp

from minisgl.server.http import CHUNK_EXTENSION

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75  # longer than the pools of common clients keep a connection
GRACEFUL_SECONDS = 3  # for responses that are still being written at the end


class ListenError(Exception):
    """The address can't be had. The message is one sentence for the one who started the server."""


class HttpConfig(Config):
    """Hypercorn's settings and ours."""

    head_timeout = 30.0  # seconds from a request's first byte to the end of its head

    def create_sockets(self) -> Sockets:
        """Engine processes that are started later must not hold the port."""
        sockets = super().create_sockets()
        for listener in sockets.insecure_sockets:
            listener.set_inheritable(False)
        return sockets


class Http1Protocol(H11Protocol):
    """HTTP/1.1 that stays so: an offered upgrade to HTTP/2 is ignored, as the standard allows.

    It offers the application a short way for the parts of a streamed body, past Hypercorn's states
    and h11's: they stay as they are while a body is being sent, and a chunk's frame is its length.
    """

    config: HttpConfig
    client_closed = False
    _head_timer: asyncio.TimerHandle | None = None  # runs while there is a part of a head
    _chunked = False  # the response under way has a body in chunks

    async def handle(self, event: Event) -> None:
        """Takes what the connection read, or its end."""
        if isinstance(event, Closed):
            self.client_closed = True
            self._stop_head_timer()
        await super().handle(event)
        if self._head_timer is None and self._has_part_of_head():
            self._head_timer = asyncio.get_running_loop().call_later(
                self.config.head_timeout, self.task_group.spawn, self._refuse_slow_head
            )
        if self.client_closed:
            # Ends the keep-alive timer. With it a connection that its client has closed would be
            # held, socket and all, until the time is over.
            await self.send(Updated(idle=False))

    async def _create_stream(self, request: h11.Request) -> None:
        await super()._create_stream(request)
        if isinstance(self.stream, HTTPStream):  # the application has its scope, but hasn't run yet
            self.stream.scope["extensions"][CHUNK_EXTENSION] = {"send": self._send_chunk}

    async def stream_send(self, event: StreamEvent) -> None:
        """Writes a part of the response."""
        if isinstance(event, Response):
            self._chunked = (
                isinstance(self.connection, h11.Connection)
                and self.connection.their_http_version == b"1.1"
                and all(name.lower() != b"content-length" for name, _ in event.headers)
            )
        await super().stream_send(event)

    async def _send_chunk(self, data: bytes) -> None:
        """Sends a part of the body, which isn't empty and not the last, as its message would be."""
        if self._chunked and self.connection.our_state is h11.SEND_BODY:
            await self.send(RawData(b"%x\r\n%b\r\n" % (len(data), data)))
        else:
            await self.stream_send(Body(STREAM_ID, data))

    async def _maybe_recycle(self) -> None:
        if self.client_closed:  # nor is there a next request to wait for
            await self._close_stream()
            await self.send(Closed())
        else:
            await super()._maybe_recycle()

    async def _check_protocol(self, event: h11.Request) -> None:
        self._stop_head_timer()  # the head is complete

    def _has_part_of_head(self) -> bool:
        connection = self.connection
        return (
            not self.client_closed
            and self.stream is None
            and connection.their_state is h11.IDLE
            and bool(connection.trailing_data[0])
        )

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    async def _refuse_slow_head(self) -> None:
        await self._send_error_response(408)
        await self.send(Closed())


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
    head_timeout: float = HttpConfig.head_timeout,
    protocol: type[Http1Protocol] = Http1Protocol,
) -> None:
    """Serves until `until()` returns and responses had GRACEFUL_SECONDS to end. Owns the socket.

    A head that isn't complete `head_timeout` seconds after its first byte is answered with 408.
    All connections of the process that begin from now on have the `protocol`.
    """
    # The class is looked up there for each connection, and there is no setting for it: hook_check
    # proves at start that it is.
    hypercorn.protocol.H11Protocol = protocol  # type: ignore[attr-defined]
    config = HttpConfig()
    config.head_timeout = head_timeout
    config.bind = [f"fd://{listener.detach()}"]
    config.backlog = BACKLOG
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.graceful_timeout = GRACEFUL_SECONDS
    config.alpn_protocols = ["http/1.1"]
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = _error_log()
    await serve(cast(Any, app), config, shutdown_trigger=until, mode="asgi")


def _error_log() -> logging.Logger:
    logger = logging.getLogger("minisgl.http")
    logger.setLevel(logging.WARNING)  # its "Running on" is said by ourselves
    return logger
