"""KV events: what enters and leaves the prefix caches of all replicas, for routers outside.

The form is vLLM's (vllm/distributed/kv_events.py up to 0.15), so what reads its events reads these.
A PUB socket sends three frames: the topic, the batch's number (8 bytes, big-endian, from 0 on) and
the batch, msgpack: [time in seconds, events, data_parallel_rank], where the rank is the replica's
number. Events are arrays that begin with their names:

    ["BlockStored", block_hashes, parent_block_hash or nil, token_ids, block_size, nil, medium, nil]
    ["BlockRemoved", block_hashes, medium]
    ["AllBlocksCleared"]

Blocks are the cache's full pages; cpp/cache/block_events.h says how they are hashed. The medium is
"GPU" or "CPU": where the engine computes, and the host's memory behind a GPU. A prompt that
isn't shared with everybody has a ninth item, vLLM's extra_keys: for each block [its salt, as hex].

A ROUTER socket sends batches again: to a request of two frames, an empty one and the first number
(8 bytes), it answers for each batch that it still has with an empty frame, the number and the
batch, and then with the number -1 and nothing. Missed numbers that aren't there any more mean that
what is known of the caches is too much or too little; routing goes wrong by that, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from minisgl.ipc.messages import BlockEvent
from minisgl.ipc.socket_files import SocketFile, SocketFileError, remove_stale

MAX_BATCHES = 10_000  # that are kept for replays
MAX_BYTES = 64 * 2**20  # of these together
HIGH_WATER_MARK = 100_000  # batches that a subscriber may lag behind before it misses some
MAX_HEARD_BYTES = 4096  # of a frame that others send: the start of a topic, or a number
AT_ONCE = 64  # batches of a replay between two turns of the event loop
END = (-1).to_bytes(8, "big", signed=True)
CLEARED = BlockEvent("cleared")

logger = logging.getLogger(__name__)


class KvEventsError(Exception):
    """The events can't be published. The sentence is meant for the screen."""


class KvEventPublisher:
    """Publishes batches of events. All but making and closing it belongs to one event loop."""

    def __init__(self, addr: str, replay_addr: str | None = None, topic: str = "") -> None:
        """Binds the addresses, tcp:// or ipc://. Raises KvEventsError."""
        self._topic = topic.encode()
        self._sent: deque[tuple[bytes, bytes]] = deque()  # number and batch
        self._num_bytes = 0
        self._next = 0
        self._context = zmq.Context()
        self._replies: asyncio.Task[None] | None = None
        self._replay: zmq.asyncio.Socket | None = None
        self._files: list[SocketFile | None] = []
        self._pub = self._context.socket(zmq.PUB)
        self._pub.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        try:
            self._files.append(_bind(self._pub, addr, "--kv-events-addr"))
            if replay_addr is not None:
                self._replay = zmq.asyncio.Socket(self._context, zmq.ROUTER)
                self._replay.setsockopt(zmq.SNDHWM, MAX_BATCHES + 1)  # a whole replay
                self._files.append(_bind(self._replay, replay_addr, "--kv-events-replay-addr"))
        except BaseException:
            self.close()
            raise

    def publish(self, replica: int, events: Sequence[BlockEvent]) -> None:
        """Sends the events of a replica as one batch, without waiting."""
        if self._replay is not None and self._replies is None:
            self._replies = asyncio.create_task(self._answer_replays(self._replay))
        batch = msgspec.msgpack.encode((time.time(), [_external(one) for one in events], replica))
        number = self._next.to_bytes(8, "big")
        self._next += 1
        self._pub.send_multipart((self._topic, number, batch), zmq.NOBLOCK)
        if self._replay is None:
            return
        self._sent.append((number, batch))
        self._num_bytes += len(batch)
        while len(self._sent) > MAX_BATCHES or self._num_bytes > MAX_BYTES:
            self._num_bytes -= len(self._sent.popleft()[1])

    def close(self) -> None:
        """Closes the sockets; what wasn't sent is dropped."""
        if self._replies is not None:
            self._replies.cancel()
        for socket in (self._pub, self._replay):
            if socket is not None:
                socket.close(0)
        self._context.term()
        for file in self._files:
            if file is not None:
                file.remove()

    async def _answer_replays(self, replay: zmq.asyncio.Socket) -> None:
        while True:
            frames = await replay.recv_multipart()
            if len(frames) != 3 or frames[1] or len(frames[2]) != 8:
                logger.debug("KV events: a request for a replay that isn't one")
                continue
            who, first = frames[0], frames[2]  # numbers sort as their bytes do
            missed = [one for one in self._sent if one[0] >= first]
            for index, (number, batch) in enumerate([*missed, (END, b"")]):
                await replay.send_multipart((who, b"", number, batch))
                if index % AT_ONCE == AT_ONCE - 1:
                    await asyncio.sleep(0)


def _bind(socket: zmq.Socket[Any], addr: str, flag: str) -> SocketFile | None:
    """Returns the file of an ipc:// address. ZeroMQ would take the place of anything there, and
    leaves it behind.
    """
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_HEARD_BYTES)  # ZeroMQ keeps a frame until it is whole
    path = addr.removeprefix("ipc://")
    has_file = path != addr and not path.startswith(("@", "*"))  # abstract, or ZeroMQ's choice
    try:
        if has_file:
            remove_stale(flag, path)
        socket.bind(addr)
    except SocketFileError as error:
        raise KvEventsError(str(error)) from None
    except zmq.ZMQError as error:
        raise KvEventsError(f"{flag} {addr} can't be used: {error.strerror}") from None
    return SocketFile(path) if has_file else None


def _external(event: BlockEvent) -> list[Any]:
    if event.kind == "stored":
        size = len(event.token_ids) // len(event.hashes)
        stored: list[Any] = [
            event.hashes,
            event.parent,
            event.token_ids,
            size,
            None,
            event.medium,
            None,
        ]
        if event.salt:
            stored.append([[event.salt.hex()]] * len(event.hashes))
        return ["BlockStored", *stored]
    if event.kind == "removed":
        return ["BlockRemoved", event.hashes, event.medium]
    return ["AllBlocksCleared"]
