"""One-way message queues between processes: ZeroMQ sockets, msgpack on the wire, never pickle.

The side that puts has an encoder, which makes of a message what msgpack can hold (dicts, lists,
numbers, text, bytes, dataclasses, msgspec's structs); the queue packs that. Text and bytes stay
what they are. The side that gets has a decoder, which takes the unpacked object. A
msgspec.msgpack.Decoder in its place reads the bytes itself, in one pass, with types and bounds
checked. Messages of processes that aren't trusted need one, or a decoder as strict.

`create` binds the address, else the queue connects to it; either end may come first. An abstract
address (ipc://@NAME) is no file, and any process of the host could connect to it: those of other
users are turned away.

Nothing is dropped in silence: PUSH and PULL have no high-water mark (what they may carry is bounded
by who puts, see EngineClient), and PUB waits for a slow subscriber instead of skipping its
messages. close() returns at once; what was put is still delivered for up to LINGER_MS, and a
process that ends waits that long for it. A message that can't be decoded is logged and left out.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
import zmq
import zmq.asyncio

ABSTRACT = "ipc://@"
LINGER_MS = 1000
PUB_HIGH_WATER_MARK = 65536  # messages a subscriber may lag behind before put() waits

# What a decoder raises for a message that it can't read.
MALFORMED = (
    msgspec.DecodeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
AnySocket = TypeVar("AnySocket", bound=zmq.Socket[Any])

Encoder = Callable[[T], Any]  # what msgpack can hold, of a message
Decoder = Callable[[Any], T] | msgspec.msgpack.Decoder[T]  # a message, of what was unpacked
OnMalformed = Callable[[bytes], None]
AnyContext = zmq.Context[Any]

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode


def as_is(message: T) -> T:
    """The encoder of messages that msgpack can hold as they are."""
    return message


@dataclass(frozen=True)
class _Shared:
    """The context of all queues that are given none, and their sockets."""

    context: AnyContext = field(default_factory=zmq.Context)
    sockets: weakref.WeakSet[zmq.Socket[Any]] = field(default_factory=weakref.WeakSet)

    def deliver(self) -> None:
        """Waits until what closed queues hold is delivered or their linger is over. Where a queue
        is still open it waits for none: another thread may be using it.
        """
        if all(socket.closed for socket in self.sockets):
            self.context.term()


@functools.cache
def _shared(pid: int) -> _Shared:
    """That of the process `pid`, which is this one: a fork can't use its parent's."""
    shared = _Shared()
    atexit.register(shared.deliver)
    return shared


def _open(
    make: Callable[[AnyContext, int], AnySocket],
    kind: int,
    addr: str,
    create: bool,
    context: AnyContext | None,
) -> AnySocket:
    if context is None:
        shared = _shared(os.getpid())
        socket = make(shared.context, kind)
        shared.sockets.add(socket)
    else:
        socket = make(context, kind)
    try:
        _set_up(socket, addr, create)
    except BaseException:
        socket.close(0)
        raise
    return socket


def _set_up(socket: zmq.Socket[Any], addr: str, create: bool) -> None:
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    if socket.type == zmq.PUB:
        socket.setsockopt(zmq.SNDHWM, PUB_HIGH_WATER_MARK)
        socket.setsockopt(zmq.XPUB_NODROP, 1)
    else:
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
    if socket.type == zmq.SUB:
        socket.setsockopt(zmq.SUBSCRIBE, b"")
    if create:
        if addr.startswith(ABSTRACT):
            socket.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())
        socket.bind(addr)
    else:
        socket.connect(addr)


class _SyncQueue:
    """A blocking socket and its end."""

    def __init__(self, kind: int, addr: str, create: bool, context: AnyContext | None) -> None:
        self._socket: zmq.Socket[bytes] = _open(zmq.Socket, kind, addr, create, context)

    def close(self, linger_ms: int = LINGER_MS) -> None:
        self._socket.close(linger_ms)


class _AsyncQueue:
    """A socket of the running event loop and its end."""

    def __init__(self, kind: int, addr: str, create: bool, context: AnyContext | None) -> None:
        self._socket = _open(zmq.asyncio.Socket, kind, addr, create, context)

    def close(self, linger_ms: int = LINGER_MS) -> None:
        self._socket.close(linger_ms)


class _Reader(Generic[T]):
    """Decodes, and leaves out what can't be decoded."""

    def __init__(self, addr: str, decoder: Decoder[T], on_malformed: OnMalformed | None) -> None:
        self._addr = addr
        if isinstance(decoder, msgspec.msgpack.Decoder):
            self._decode: Callable[[bytes], T] = decoder.decode
        else:
            self._decode = lambda data: decoder(_unpack(data))
        self._on_malformed = on_malformed

    def read(self, data: bytes) -> tuple[T] | None:
        """The message in a tuple, or None when there is none in these bytes."""
        try:
            return (self._decode(data),)
        except MALFORMED as error:
            logger.error(
                "%s: dropped a malformed message of %d bytes: %s: %s",
                self._addr,
                len(data),
                type(error).__name__,
                error,
            )
            if self._on_malformed is not None:
                self._on_malformed(data)
            return None


class _SyncWriteQueue(_SyncQueue, Generic[T]):
    _kind: ClassVar[int]

    def __init__(
        self, addr: str, create: bool, encoder: Encoder[T], *, context: AnyContext | None = None
    ) -> None:
        super().__init__(self._kind, addr, create, context)
        self._encoder = encoder

    def put(self, message: T) -> None:
        """Sends a message. Raises what the encoder raises, TypeError with the type's name or
        OverflowError for what msgpack can't hold; nothing is sent then.
        """
        self._socket.send(_pack(self._encoder(message)))


class ZmqPushQueue(_SyncWriteQueue[T]):
    """Puts to one of the pullers connected. put() waits while there is none."""

    _kind = zmq.PUSH


class ZmqPubQueue(_SyncWriteQueue[T]):
    """Puts to every subscriber connected; a subscriber that comes later misses what was before."""

    _kind = zmq.PUB


class _SyncReadQueue(_SyncQueue, Generic[T]):
    _kind: ClassVar[int]

    def __init__(
        self,
        addr: str,
        create: bool,
        decoder: Decoder[T],
        *,
        context: AnyContext | None = None,
        on_malformed: OnMalformed | None = None,
    ) -> None:
        super().__init__(self._kind, addr, create, context)
        self._reader = _Reader(addr, decoder, on_malformed)

    def get(self) -> T:
        """The next well-formed message; waits for it."""
        while True:
            message = self._reader.read(self._socket.recv())
            if message is not None:
                return message[0]

    def empty(self) -> bool:
        """Whether get() would have to wait now (for a well-formed message it may have to all the
        same).
        """
        return self._socket.poll(timeout=0) == 0


class ZmqPullQueue(_SyncReadQueue[T]):
    """Gets what pushers put to it."""

    _kind = zmq.PULL


class ZmqSubQueue(_SyncReadQueue[T]):
    """Gets everything published since it connected."""

    _kind = zmq.SUB


class _AsyncWriteQueue(_AsyncQueue, Generic[T]):
    _kind: ClassVar[int]

    def __init__(
        self, addr: str, create: bool, encoder: Encoder[T], *, context: AnyContext | None = None
    ) -> None:
        super().__init__(self._kind, addr, create, context)
        self._encoder = encoder

    async def put(self, message: T) -> None:
        """Sends a message. Raises what the encoder raises, TypeError with the type's name or
        OverflowError for what msgpack can't hold; nothing is sent then.
        """
        await self._socket.send(_pack(self._encoder(message)))


class ZmqAsyncPushQueue(_AsyncWriteQueue[T]):
    """ZmqPushQueue for the running event loop."""

    _kind = zmq.PUSH

    def put_nowait(self, message: T) -> bool:
        """Puts without waiting; False when no puller is connected (nothing was put then). Raises
        zmq.ZMQError when the socket fails, and what put() raises.
        """
        sent: Any = self._socket.send(_pack(self._encoder(message)), flags=zmq.NOBLOCK)
        error = sent.exception() if sent.done() else None
        if error is not None and not isinstance(error, zmq.Again):
            raise error
        return error is None


class ZmqAsyncPubQueue(_AsyncWriteQueue[T]):
    """ZmqPubQueue for the running event loop."""

    _kind = zmq.PUB


class _AsyncReadQueue(_AsyncQueue, Generic[T]):
    _kind: ClassVar[int]

    def __init__(
        self,
        addr: str,
        create: bool,
        decoder: Decoder[T],
        *,
        context: AnyContext | None = None,
        on_malformed: OnMalformed | None = None,
    ) -> None:
        super().__init__(self._kind, addr, create, context)
        self._reader = _Reader(addr, decoder, on_malformed)

    async def get(self) -> T:
        """The next well-formed message."""
        while True:
            message = self._reader.read(await self._socket.recv())
            if message is not None:
                return message[0]

    def empty(self) -> bool:
        """Whether get() would have to wait now (for a well-formed message it may have to all the
        same).
        """
        return not int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN


class ZmqAsyncPullQueue(_AsyncReadQueue[T]):
    """ZmqPullQueue for the running event loop."""

    _kind = zmq.PULL


class ZmqAsyncSubQueue(_AsyncReadQueue[T]):
    """ZmqSubQueue for the running event loop."""

    _kind = zmq.SUB
