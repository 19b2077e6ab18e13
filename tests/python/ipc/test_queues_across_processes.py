"""The queues between processes: order, high-water marks, slow subscribers, garbage."""

from __future__ import annotations

import asyncio
import logging
import select
import subprocess
import sys
from collections.abc import Callable, Iterator

import msgspec
import pytest
import zmq

from minisgl.ipc.messages import Abort, to_rank_decoder
from minisgl.ipc.queues import (
    PUB_HIGH_WATER_MARK,
    ZmqAsyncPubQueue,
    ZmqAsyncPullQueue,
    ZmqAsyncPushQueue,
    ZmqAsyncSubQueue,
    ZmqPubQueue,
    ZmqPullQueue,
    ZmqPushQueue,
    ZmqSubQueue,
    as_is,
)
from tests.python.waiting import PATIENCE

COUNT = 3 * PUB_HIGH_WATER_MARK  # messages, more than both ends of a publisher hold
encode = msgspec.msgpack.encode
decoder = msgspec.msgpack.Decoder(list[int])

# A process that gets until it sees [-2], and exits with status 0 if that was 0, 1, 2, ... in order.
# Kind and pace are arguments; [-1] is not counted, and the first one is confirmed.
READER = """
import sys, time, zmq, msgspec
from minisgl.ipc import queues
kind, address, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
queue = getattr(queues, kind)(address, False, msgspec.msgpack.Decoder(list[int]))
print("there", flush=True)
wanted, heard = 0, False
while (number := queue.get()[0]) != -2:
    if number == -1:
        if not heard:
            print("heard", flush=True)
        heard = True
        continue
    if number != wanted:
        sys.exit(f"got {number}, not {wanted}")
    if wanted == 10:
        time.sleep(pause)
    wanted += 1
print(wanted, flush=True)
"""

StartReader = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"ipc://{tmp_path_factory.mktemp('q')}/q"


@pytest.fixture
def reader(address: str) -> Iterator[StartReader]:
    processes: list[subprocess.Popen[str]] = []

    def start(kind: str, pause: float = 0.0) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", READER, kind, address, str(pause)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def received(process: subprocess.Popen[str]) -> int:
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return int(output.split()[-1])


def has_heard(process: subprocess.Popen[str]) -> bool:
    """Whether it confirms within a moment that it has got something."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 0.01)
    return bool(ready) and process.stdout.readline() == "heard\n"


def test_push_and_pull(address: str, reader: StartReader) -> None:
    push = ZmqPushQueue(address, True, as_is)
    process = reader("ZmqPullQueue", 0.5)
    for number in [*range(COUNT), -2]:
        push.put([number])
    assert received(process) == COUNT
    push.close()


async def test_async_push_waits_for_nobody(address: str, reader: StartReader) -> None:
    push = ZmqAsyncPushQueue(address, True, as_is)
    process = reader("ZmqPullQueue", 1.0)
    await push.put([-1])
    for number in range(20_000):
        assert push.put_nowait([number])
    await push.put([-2])
    assert await asyncio.to_thread(received, process) == 20_000
    push.close()


def test_a_slow_subscriber_gets_everything_and_a_dead_one_holds_nobody_up(
    address: str, reader: StartReader
) -> None:
    publish = ZmqPubQueue(address, True, as_is)
    slow, quick, dead = (reader("ZmqSubQueue", pause) for pause in (1.0, 0.0, 0.0))
    for process in (slow, quick, dead):  # until the subscriptions have arrived
        while not has_heard(process):
            publish.put([-1])
    dead.kill()
    dead.wait()
    for number in [*range(COUNT), -2]:
        publish.put([number])
    assert received(slow) == COUNT
    assert received(quick) == COUNT
    publish.close()


async def test_async_publishers_and_subscribers(address: str, reader: StartReader) -> None:
    publish = ZmqAsyncPubQueue(address, True, as_is)
    process = reader("ZmqSubQueue")
    subscribe = ZmqAsyncSubQueue(address, False, decoder)
    while subscribe.empty() or not has_heard(process):  # until the subscriptions have arrived
        await publish.put([-1])
        await asyncio.sleep(0.01)
    for number in [*range(2000), -2]:
        await publish.put([number])
    numbers = []
    while (number := (await subscribe.get())[0]) != -2:
        if number != -1:
            numbers.append(number)
    assert numbers == list(range(2000))
    assert await asyncio.to_thread(received, process) == 2000
    publish.close()
    subscribe.close()


def bound_socket(kind: int, address: str) -> zmq.Socket[bytes]:
    """The end of another program, which sends what bytes it likes."""
    socket = zmq.Context.instance().socket(kind)
    socket.setsockopt(zmq.RCVTIMEO, round(1000 * PATIENCE))
    socket.bind(address)
    return socket


GARBAGE = [
    (b"\xc1", "MessagePack data is malformed"),
    (encode({"type": "abort"}), "missing required field `ids`"),
    (encode({"type": "abort", "ids": [1, "x"]}), r"$.ids[1]"),
    (
        encode({"type": "submit", "id": 1, "prompt": [1], "params": {"max_tokens": -1}}),
        "max_tokens must be between 0 and 2147483647, got -1 - at `$.params`",
    ),
    (encode({"type": "nothing"}), "$.type"),
]


@pytest.mark.parametrize("kinds", [("push", "pull"), ("pub", "sub")])
async def test_garbage_is_named_and_the_socket_lives_on(
    address: str, kinds: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    good = encode(Abort([7]))
    is_push = kinds[0] == "push"
    put = bound_socket(zmq.PUSH if is_push else zmq.XPUB, address)
    get = (ZmqPullQueue if is_push else ZmqSubQueue)(address, False, to_rank_decoder)
    if not is_push:
        assert put.recv() == b"\x01"  # the subscription has arrived
    with caplog.at_level(logging.ERROR):
        for data, _ in GARBAGE:
            put.send(data)
            put.send(good)
            assert get.get() == Abort([7])
    for record, (_, field) in zip(caplog.records, GARBAGE, strict=True):
        assert field in record.getMessage()
    put.close()
    get.close()


async def test_garbage_on_async_queues(address: str, caplog: pytest.LogCaptureFixture) -> None:
    put = bound_socket(zmq.XPUB, address)
    get = ZmqAsyncSubQueue(address, False, to_rank_decoder)
    pull = ZmqAsyncPullQueue(address + "2", False, to_rank_decoder)
    push = bound_socket(zmq.PUSH, address + "2")
    assert put.recv() == b"\x01"  # the subscription has arrived
    with caplog.at_level(logging.ERROR):
        for data, _ in GARBAGE:
            put.send(data)
            push.send(data)
        put.send(encode(Abort([7])))
        push.send(encode(Abort([8])))
        assert await asyncio.wait_for(get.get(), PATIENCE) == Abort([7])
        assert await asyncio.wait_for(pull.get(), PATIENCE) == Abort([8])
    assert len(caplog.records) == 2 * len(GARBAGE)
    for end in (put, get, pull, push):
        end.close()
