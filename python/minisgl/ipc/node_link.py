"""The connection between host 0, which serves, and another host of the same model: TCP, both ends
proven to know the same secret, then msgpack messages.

Nothing is encrypted; the network is trusted with what the ranks compute. The secret itself never
crosses it, and what ranks need for their own connections is derived from it at both ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import socket
import struct
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from minisgl.ipc.messages import Alive, EngineOptions, FromRank, Place, Sentence, encode

HANDSHAKE_SECONDS = 5.0
LOST_AFTER_MS = 15_000  # that what was sent stays unconfirmed; its ranks are missed before
MAX_MESSAGE_BYTES = 64 * 2**20
_NONCE_BYTES = 32
_MAC_BYTES = 32


class StartRanks(msgspec.Struct, frozen=True, tag="start_ranks"):
    """To a host: end what runs and start these ranks. Their model, cores and keys are the host's
    own business.
    """

    options: EngineOptions
    places: list[Place]


class EndRanks(msgspec.Struct, frozen=True, tag="end_ranks"):
    """To a host: end the ranks at once and wait for others."""


class Farewell(msgspec.Struct, frozen=True, tag="farewell"):
    """To a host: the server ends."""


class RankWord(msgspec.Struct, frozen=True, tag="word"):
    """From a host: what one of its ranks said. `group` is the name in its place."""

    group: Annotated[str, Meta(max_length=64)]
    rank: Annotated[int, Meta(ge=0, le=1023)]
    message: FromRank


class RankEnd(msgspec.Struct, frozen=True, tag="end"):
    """From a host: one of its ranks has ended, and why."""

    group: Annotated[str, Meta(max_length=64)]
    rank: Annotated[int, Meta(ge=0, le=1023)]
    reason: Sentence


ToNode = StartRanks | EndRanks | Farewell | Alive
FromNode = RankWord | RankEnd
_to_node: msgspec.msgpack.Decoder[ToNode] = msgspec.msgpack.Decoder(ToNode)
_from_node: msgspec.msgpack.Decoder[FromNode] = msgspec.msgpack.Decoder(FromNode)


class NodeLinkError(Exception):
    """The other end is gone, says what it must not say, or doesn't know the secret."""


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
        data = encode(message)
        self._writer.write(struct.pack(">I", len(data)) + data)

    async def receive_from_node(self) -> FromNode:
        """The next message on host 0. Raises NodeLinkError."""
        message: FromNode = self._decode(await self._read_message(), _from_node)
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
            raise NodeLinkError("the connection ended") from error

    def close(self) -> None:
        """Sends what was put last as far as the kernel takes it, and closes."""
        self._writer.close()


async def greet_node(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: str, nnodes: int
) -> NodeLink:
    """Host 0's part of the handshake. Raises NodeLinkError."""
    own = secrets.token_bytes(_NONCE_BYTES)
    writer.write(own)
    answer = await _read_exactly(reader, _NONCE_BYTES + 4 + _MAC_BYTES)
    other, number, mac = struct.unpack(f">{_NONCE_BYTES}sI{_MAC_BYTES}s", answer)
    if not hmac.compare_digest(mac, _proof(secret, "node", own, other, number)):
        raise NodeLinkError("authentication failed: its MINISGL_DIST_SECRET differs")
    if not 1 <= number < nnodes:
        raise NodeLinkError(f"its --node-rank is {number}, but --nnodes is {nnodes} here")
    writer.write(_proof(secret, "server", own, other, number))
    return NodeLink(reader, writer, number)


async def connect_to_server(host: str, port: int, secret: str, node_rank: int) -> NodeLink:
    """The other host's part. Raises OSError where nobody listens, NodeLinkError."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
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
        raise NodeLinkError(f"the handshake took longer than {HANDSHAKE_SECONDS:g} s") from error
    except (OSError, asyncio.IncompleteReadError) as error:
        raise NodeLinkError(
            "the other host closed the connection (has it the same MINISGL_DIST_SECRET?)"
        ) from error
