"""One client's connection, in the place of Hypercorn's: it reads, writes, and gives up on a client
that takes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import logging
import math
import socket
import ssl
import struct
import sys
import termios
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.config import Config

from minisgl.server.http1 import Http1
from minisgl.server.wire import HttpSettings

READ_BYTES = 2**16
WRITE_TIMEOUT_S = 120.0  # a client that takes no byte for that long is given up
STALL_CHECK_S = 10.0
EVICTION_LOOKS = 64  # connections that are looked at, to find an idle one
REFUSALS_SAID_S = 60.0  # between two lines about connections that were refused
# How long the rest of a refused body is read, so that the client sees the refusal and not a reset.
LINGER_S = 1.0

_HUNG_UP = (7, 8)  # TCP_CLOSE, TCP_CLOSE_WAIT

logger = logging.getLogger("minisgl.http")


class Connections:
    """All connections of a server."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._all: dict[Connection, None] = {}  # those whose latest request is the oldest first
        self.long_turns = asyncio.Lock()
        self._num_refused = 0
        self._said_at = -math.inf
        self.ending = False  # no connection has a next request any more

    def admit(self, connection: Connection) -> bool:
        """A connection has begun. Where it is one too many it takes the place of one that has been
        without a request for long. False where all are at work.
        """
        if len(self._all) >= self._limit and not self._make_room():
            self._say_refused()
            return False
        self._all[connection] = None
        return True

    def remove(self, connection: Connection) -> None:
        """A connection has ended."""
        self._all.pop(connection, None)

    def at_work(self, connection: Connection) -> None:
        """A connection has a request."""
        if connection in self._all:
            del self._all[connection]
            self._all[connection] = None

    def _make_room(self) -> bool:
        for connection in itertools.islice(self._all, EVICTION_LOOKS):
            if connection.idle:
                del self._all[connection]
                connection.evict()
                return True
        return False

    def _say_refused(self) -> None:
        self._num_refused += 1
        now = asyncio.get_running_loop().time()
        if now - self._said_at > REFUSALS_SAID_S:
            logger.warning(
                "all %d connections (--max-connections) have requests under way: further ones are "
                "answered with 503 (%d until now)",
                self._limit,
                self._num_refused,
            )
            self._said_at = now

    def end(self) -> None:
        """Closes the idle ones, and each other one with the end of its request."""
        self.ending = True
        for connection in tuple(self._all):
            if connection.idle:
                connection.end()

    async def watch(self) -> None:
        """Cuts those whose client takes nothing, for as long as it runs."""
        while True:
            await asyncio.sleep(STALL_CHECK_S)
            self._check_progress(asyncio.get_running_loop().time())

    def _check_progress(self, now: float) -> None:
        for connection in tuple(self._all):
            connection.check_progress(now)


class HttpConfig(Config):
    """Hypercorn's settings and ours: all that it hands on to a connection."""

    def __init__(
        self, settings: HttpSettings, connections: Connections, tls: ssl.SSLContext | None
    ) -> None:
        super().__init__()
        self.settings = settings
        self.connections = connections
        self._tls = tls

    @property
    def ssl_enabled(self) -> bool:
        """Whether connections are encrypted."""
        return self._tls is not None

    def create_ssl_context(self) -> ssl.SSLContext | None:
        """What they are encrypted with."""
        return self._tls


class Connection:
    """Hypercorn makes one per client, with these arguments, and awaits it."""

    def __init__(
        self,
        app: object,
        loop: asyncio.AbstractEventLoop,
        config: HttpConfig,
        context: object,
        state: object,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.settings = config.settings
        self._connections = config.connections
        self.long_turns = config.connections.long_turns
        self._loop = loop
        self._reader = reader
        self._writer = writer
        self._transport = writer.transport
        self._socket = writer.get_extra_info("socket")
        self._draining = asyncio.Lock()
        self._written = 0  # bytes
        self._taken = 0  # of them by the client, at the last check
        self._taken_at = loop.time()
        self._cut = False
        self._encrypted = writer.get_extra_info("ssl_object") is not None
        self.scheme = "https" if self._encrypted else "http"
        self.client = _address(writer.get_extra_info("peername"))
        self.server = _address(writer.get_extra_info("sockname"))
        self._http = Http1(self)

    def __await__(self) -> Generator[Any, None, None]:
        return self._run().__await__()

    @property
    def ending(self) -> bool:
        """There is no next request."""
        return self._connections.ending

    async def _run(self) -> None:
        if not self._connections.admit(self):
            self._http.refuse_connection()
            return
        try:
            async with TaskGroup(self._loop) as self._tasks:
                if self.ending:
                    self._http.close()
                await self._read()
        except asyncio.CancelledError:  # the server ends: it waits for no client that takes nothing
            self._writer.transport.abort()
            raise
        finally:
            try:
                self._writer.close()
                with contextlib.suppress(OSError, RuntimeError):
                    await self._writer.wait_closed()
            finally:
                self._writer.transport.abort()
                self._connections.remove(self)

    async def _read(self) -> None:
        with contextlib.suppress(OSError):  # a reset, or no TLS any more
            while data := await self._reader.read(READ_BYTES):
                await self._http.received(data)
        self._http.client_gone()

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs `work` in a task that the connection waits for."""
        self._tasks.spawn(work)

    async def write(self, data: bytes) -> None:
        """Sends `data`. Waits while the client takes less than it is sent."""
        with contextlib.suppress(OSError):  # the client is gone, which is seen below
            self.write_soon(data)
            async with self._draining:
                await self._writer.drain()
        if self._writer.transport.is_closing():
            self._http.client_gone()

    def write_now(self, data: bytes) -> bool:
        """Sends `data` if the client has taken all that it was sent before; else, and where it is
        gone, False, with nothing sent.
        """
        transport = self._transport
        if transport.get_write_buffer_size() or transport.is_closing():
            return False
        self._written += len(data)
        transport.write(data)
        return True

    def write_soon(self, data: bytes) -> None:
        """Sends `data`, which is little, without waiting."""
        if not self._writer.transport.is_closing():
            self._written += len(data)
            self._writer.write(data)

    def hung_up(self) -> bool:
        """Whether the client has closed it, though not all that it sent has been read."""
        with contextlib.suppress(OSError):  # a Unix socket, which doesn't tell
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            return bool(info[0] in _HUNG_UP)
        return False

    def close(self, *, linger: bool) -> None:
        """Ends it once all is sent. `linger`: goes on reading for a while."""
        if not linger:
            self._writer.close()
            return
        with contextlib.suppress(OSError, RuntimeError):
            if self._writer.can_write_eof():
                self._writer.write_eof()
        self._loop.call_later(LINGER_S, self._writer.close)

    @property
    def idle(self) -> bool:
        """No request is under way."""
        return self._http.idle

    def at_work(self) -> None:
        """A request has begun."""
        self._connections.at_work(self)

    def end(self) -> None:
        """Ends an idle one when all is sent."""
        self._http.close()

    def evict(self) -> None:
        """Ends an idle one at once."""
        self._http.close()
        self._writer.transport.abort()

    def check_progress(self, now: float) -> None:
        """Cuts it when the client has taken none of what waits for it for WRITE_TIMEOUT_S."""
        transport = self._writer.transport
        if self._cut or (self._encrypted and transport.is_closing()):
            return  # TLS has its own time limit for an end, and tells of no socket after it
        if not (waiting := transport.get_write_buffer_size()):
            self._taken_at = now
            return
        # The kernel takes nothing for long, and then much at once: what it holds counts, too.
        held = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4))
        taken = self._written - waiting - int.from_bytes(held, sys.byteorder)
        if taken != self._taken:
            self._taken, self._taken_at = taken, now
        elif now - self._taken_at > WRITE_TIMEOUT_S:
            self._cut = True
            # The kernel forgets at once what it holds for the client.
            linger = struct.pack("ii", 1, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.abort()
            self._http.client_gone()


def _address(name: Any) -> tuple[str, int] | None:
    """An ASGI address; None for a Unix socket's."""
    return (name[0], name[1]) if isinstance(name, tuple) else None
