"""The connection between host 0, which serves, and another host that has ranks: TCP. Both ends
say their release and prove that they know the secret; msgpack messages follow.

Nothing is encrypted; the network is trusted with what the ranks compute. The secret itself never
crosses it, and what ranks need for their own connections is derived from it at both ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import secrets
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from minisgl.ipc.messages import Alive, EngineOptions, FromRank, NamedModel, Place, Sentence
from minisgl.version import __version__

HANDSHAKE_SECONDS = 5.0
LOST_AFTER_MS = 15_000  # limit for what was sent to stay unconfirmed; its silence is noticed before
MAX_MESSAGE_BYTES = 64 * 2**20
# The version of these messages, of those to and from a rank, and of what ranks of several hosts say
# to each other: it grows with every change, also between releases.
WIRE_VERSION = 11
_MAGIC = b"minisgl\0"
_RELEASE_BYTES = 32
_HELLO = struct.Struct(f">8sI{_RELEASE_BYTES}s")
_RELEASE = re.compile(r"[0-9A-Za-z.+!-]{1,32}")
_NONCE_BYTES = 32
_MAC_BYTES = 32


GroupName = Annotated[str, Meta(max_length=64)]  # the name in a rank's place


class StartRanks(msgspec.Struct, frozen=True, tag="start_ranks"):
    """To a host: start these ranks, all of one group, once those that are ending there have ended.
    Their keys are the host's own business.
    """

    options: EngineOptions
    places: Annotated[list[Place], Meta(min_length=1)]
    # What of the host is theirs. No GPUs and cores: none in particular.
    gpus: list[str] = []  # as CUDA_VISIBLE_DEVICES takes them
    cores: list[int] = []
    sharers: Annotated[int, Meta(ge=1)] = 1  # groups that the host is divided among
    label: Annotated[str, Meta(max_length=64)] = ""  # what the names of processes end with
    model: NamedModel | None = None  # the host looks for its copy; None: what it was started with


class RankMail(msgspec.Struct, frozen=True, tag="mail"):
    """To a host: a message for one of its ranks, which checks it."""

    group: GroupName
    rank: Annotated[int, Meta(ge=0, le=1023)]
    message: msgspec.Raw


class StopRanks(msgspec.Struct, frozen=True, tag="stop_ranks"):
    """To a host: end a group's ranks in order. Each one's RankEnd follows."""

    group: GroupName
    listening: bool  # whether the ranks would hear a Shutdown


class EndRanks(msgspec.Struct, frozen=True, tag="end_ranks"):
    """To a host: end a group's ranks at once. GroupEnd follows."""

    group: GroupName


class Farewell(msgspec.Struct, frozen=True, tag="farewell"):
    """To a host: the server ends."""


class RankWord(msgspec.Struct, frozen=True, tag="word"):
    """From a host: what one of its ranks said."""

    group: GroupName
    rank: Annotated[int, Meta(ge=0, le=1023)]
    message: FromRank


class RankGone(msgspec.Struct, frozen=True, tag="gone"):
    """From a host: the process of one of its ranks is no more. Its last words may follow, then its
    RankEnd.
    """

    group: GroupName
    rank: Annotated[int, Meta(ge=0, le=1023)]


class RankEnd(msgspec.Struct, frozen=True, tag="end"):
    """From a host: one of its ranks has ended, and why."""

    group: GroupName
    rank: Annotated[int, Meta(ge=0, le=1023)]
    reason: Sentence


class GroupEnd(msgspec.Struct, frozen=True, tag="group_end"):
    """From a host: of a group's ranks there, nothing is left."""

    group: GroupName


class GpuReport(msgspec.Struct, frozen=True):
    """A GPU of a host."""

    name: Annotated[str, Meta(max_length=256)]  # as CUDA_VISIBLE_DEVICES takes it
    near: list[int] = []  # the cores on its side
    links: list[int] = []  # numbers of the GPUs that NVLink joins it to


class HostReport(msgspec.Struct, frozen=True, kw_only=True, tag="host"):
    """From a host that has joined, first: what it has for groups."""

    name: Annotated[str, Meta(max_length=256)]
    cores: Annotated[list[int], Meta(max_length=65536)]
    gpus: Annotated[list[GpuReport], Meta(max_length=1024)] = []
    groups: Annotated[int, Meta(ge=1, le=1024)] = 1  # that its cores are divided among
    model: NamedModel | None = None  # that it was started with, by its commit; None: it has none


ToNode = StartRanks | RankMail | StopRanks | EndRanks | Farewell | Alive
OfGroup = RankWord | RankGone | RankEnd | GroupEnd
FromNode = OfGroup | HostReport | Alive
_to_node: msgspec.msgpack.Decoder[ToNode] = msgspec.msgpack.Decoder(ToNode)
_from_node: msgspec.msgpack.Decoder[FromNode] = msgspec.msgpack.Decoder(FromNode)


class NodeLinkError(Exception):
    """The peer is gone, says what it must not say, or doesn't know the secret. The sentence is for
    operators.
    """


class ReleaseMismatch(NodeLinkError):  # noqa: N818
    """The peer has another release of minisgl: trying again is of no use."""


def derive_key(secret: str, *words: object) -> bytes:
    """32 bytes that follow from the secret and the words and from nothing less."""
    text = "\0".join(map(str, words))
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest()


class NodeLink:
    """One end of a connection. Made by greet_node() on host 0 and by connect_to_server()."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node_rank: int
    ) -> None:
        self.node_rank = node_rank
        self.silent_ticks = 0  # seconds since the last message, counted by whoever watches
        self._reader = reader
        self._writer = writer
        # Host 0 writes every second: a host that is off the network is noticed, and not only lost.
        writer.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_AFTER_MS
        )

    def send(self, message: Any) -> None:
        """Puts a message without waiting; that the other end is gone is receive()'s news."""
        if self._writer.is_closing():
            return
        data = msgspec.msgpack.encode(message)
        self._writer.write(struct.pack(">I", len(data)) + data)

    async def receive_from_node(self) -> FromNode:
        """The next message on host 0. Raises NodeLinkError."""
        message: FromNode = self._decode(await self._read_message(), _from_node)
        self.silent_ticks = 0
        return message

    async def receive_from_server(self) -> ToNode:
        """The next message on another host. Raises NodeLinkError."""
        message: ToNode = self._decode(await self._read_message(), _to_node)
        return message

    @staticmethod
    def _decode(data: bytes, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
        try:
            return decoder.decode(data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise NodeLinkError(f"a message is malformed: {error}") from error

    async def _read_message(self) -> bytes:
        try:
            (length,) = struct.unpack(">I", await self._reader.readexactly(4))
            if length > MAX_MESSAGE_BYTES:
                raise NodeLinkError(
                    f"a message is too long ({length} bytes; limit {MAX_MESSAGE_BYTES})"
                )
            return await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise NodeLinkError("the peer closed the connection") from error

    def close(self) -> None:
        """Sends what was put last as far as the kernel takes it, and closes."""
        self._writer.close()

    async def wait_closed(self) -> None:
        """Until either end has closed it and somebody has received that here."""
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        """Closes at once: the peer is out of reach."""
        self._writer.transport.abort()


@dataclass(frozen=True)
class Hello:
    """What each end says first: which minisgl it is."""

    release: str = __version__
    wire: int = WIRE_VERSION

    def pack(self) -> bytes:
        """The first bytes of a connection."""
        return _HELLO.pack(_MAGIC, self.wire, self.release.encode()[:_RELEASE_BYTES])

    @classmethod
    def unpack(cls, data: bytes) -> Hello:
        """Raises NodeLinkError for anything that is no hello."""
        magic, wire, release = _HELLO.unpack(data)
        text = release.rstrip(b"\0").decode("ascii", "replace")
        if magic != _MAGIC or not _RELEASE.fullmatch(text):
            raise NodeLinkError(
                "the peer is not minisgl, or a release before versions were compared "
                f"(this is {Hello()}); every host needs the same release"
            )
        return cls(text, wire)

    def check(self, own_place: str, peer_place: str) -> None:
        """Raises ReleaseMismatch where this peer can't work with this host."""
        if self != Hello():
            raise ReleaseMismatch(
                f"{peer_place} runs {self} and {own_place} runs {Hello()}; "
                "install the same release on every host"
            )

    def __str__(self) -> str:
        return f"minisgl {self.release} (wire version {self.wire})"


async def greet_node(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    secret: str,
    fault: Callable[[int], str],
) -> NodeLink:
    """Host 0's part of the handshake. `fault` says what is wrong with the other's number; "" for
    nothing. Raises NodeLinkError.
    """
    own = secrets.token_bytes(_NONCE_BYTES)
    writer.write(Hello().pack() + own)
    hello = Hello.unpack(await _read_exactly(reader, _HELLO.size))
    hello.check("host 0", "the peer")
    answer = await _read_exactly(reader, _NONCE_BYTES + 4 + _MAC_BYTES)
    other, number, mac = struct.unpack(f">{_NONCE_BYTES}sI{_MAC_BYTES}s", answer)
    if not hmac.compare_digest(mac, _proof(secret, "node", own, other, number)):
        raise NodeLinkError("authentication failed: its MINISGL_DIST_SECRET differs")
    if sentence := fault(number):
        raise NodeLinkError(sentence)
    writer.write(_proof(secret, "server", own, other, number))
    return NodeLink(reader, writer, number)


async def connect_to_server(host: str, port: int, secret: str, node_rank: int) -> NodeLink:
    """The other host's part. Raises OSError where nobody listens, NodeLinkError."""
    try:
        connecting = asyncio.open_connection(host, port)
        reader, writer = await asyncio.wait_for(connecting, HANDSHAKE_SECONDS)
    except asyncio.TimeoutError as error:  # the kernel would try for ever longer intervals
        raise NodeLinkError(f"no answer within {HANDSHAKE_SECONDS:g} s") from error
    try:
        writer.write(Hello().pack())  # before the other's is read: both ends can name both
        Hello.unpack(await _read_exactly(reader, _HELLO.size)).check("this host", "host 0")
        other = await _read_exactly(reader, _NONCE_BYTES)
        own = secrets.token_bytes(_NONCE_BYTES)
        proof = _proof(secret, "node", other, own, node_rank)
        writer.write(own + struct.pack(">I", node_rank) + proof)
        answer = await _read_exactly(reader, _MAC_BYTES)
        if not hmac.compare_digest(answer, _proof(secret, "server", other, own, node_rank)):
            raise NodeLinkError("authentication failed: MINISGL_DIST_SECRET differs there")
    except BaseException:
        writer.close()
        raise
    return NodeLink(reader, writer, node_rank)


def _proof(secret: str, role: str, server_nonce: bytes, node_nonce: bytes, number: int) -> bytes:
    return derive_key(secret, "link", role, server_nonce.hex(), node_nonce.hex(), number)


async def _read_exactly(reader: asyncio.StreamReader, count: int) -> bytes:
    try:
        return await asyncio.wait_for(reader.readexactly(count), HANDSHAKE_SECONDS)
    except asyncio.TimeoutError as error:
        raise NodeLinkError(f"the handshake timed out after {HANDSHAKE_SECONDS:g} s") from error
    except (OSError, asyncio.IncompleteReadError) as error:
        raise NodeLinkError(
            "the peer ended the handshake; where it is host 0, its log says why "
            "(MINISGL_DIST_SECRET, --node-rank)"
        ) from error
