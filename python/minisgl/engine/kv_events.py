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
MAX_REPLAYS are answered at a time; a further one gets the number -1 at once, and may ask again. Who
doesn't read holds no more than LAG batches.
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
from minisgl.tasks import background

MAX_BATCHES = 10_000  # that are kept for replays
MAX_BYTES = 64 * 2**20  # of these together
HIGH_WATER_MARK = 100_000  # batches that a subscriber may lag behind before it misses some
MAX_HEARD_BYTES = 4096  # of a frame that others send: the start of a topic, or a number
AT_ONCE = 64  # batches of a replay between two turns of the event loop
MAX_REPLAYS = 16
LAG = 64  # batches of a replay that a reader may lag behind
LOOK_SECONDS = 0.01  # between two looks whether it has read some: ZeroMQ doesn't tell
LOOKS = 500  # until a reader that takes nothing is given up
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
        self._replays: set[asyncio.Task[None]] = set()
        self._replay: zmq.asyncio.Socket | None = None
        self._files: list[SocketFile | None] = []
        self._pub = self._context.socket(zmq.PUB)
        self._pub.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        try:
            self._files.append(_bind(self._pub, addr, "--kv-events-addr"))
            if replay_addr is not None:
                self._replay = zmq.asyncio.Socket(self._context, zmq.ROUTER)
                self._replay.setsockopt(zmq.SNDHWM, LAG)
                self._replay.setsockopt(zmq.ROUTER_MANDATORY, 1)  # else the rest would be dropped
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
        for task in (*self._replays, self._replies):
            if task is not None:
                task.cancel()
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
            who, first, end = frames[0], int.from_bytes(frames[2], "big"), self._next
            if len(self._replays) >= MAX_REPLAYS:
                logger.warning(
                    "KV events: %d replays are under way, and a further one is refused", MAX_REPLAYS
                )
                first = end
            task = background(self._send_again(replay, who, first, end), "a replay of KV events")
            self._replays.add(task)
            task.add_done_callback(self._replays.discard)

    async def _send_again(
        self, replay: zmq.asyncio.Socket, who: bytes, first: int, end: int
    ) -> None:
        """Sends the batches from `first` to before `end`, as far as they are still there."""
        number = first
        while number < end:
            oldest = self._next - len(self._sent)
            number = max(number, oldest)
            if not await _send_patiently(replay, (who, b"", *self._sent[number - oldest])):
                logger.warning(
                    "KV events: the reader of a replay takes nothing, and %d batches for it are "
                    "left out",
                    end - number,
                )
                return
            number += 1
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        await _send_patiently(replay, (who, b"", END, b""))


async def _send_patiently(replay: zmq.asyncio.Socket, frames: Sequence[bytes]) -> bool:
    """False where the reader has lagged behind for too long."""
    for _ in range(LOOKS):
        if await _send(replay, frames):
            return True
        await asyncio.sleep(LOOK_SECONDS)
    return False


async def _send(replay: zmq.asyncio.Socket, frames: Sequence[bytes]) -> bool:
    """False where the reader lags behind. One that is gone takes everything."""
    try:
        await replay.send_multipart(frames, zmq.NOBLOCK)
    except zmq.Again:
        return False
    except zmq.ZMQError as error:
        if error.errno != zmq.EHOSTUNREACH:
            raise
    return True


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
