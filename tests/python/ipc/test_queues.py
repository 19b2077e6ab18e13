"""The queues between two ends of a real socket."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time

import msgspec
import pytest
import zmq

from minisgl.ipc.queues import (
    ZmqAsyncPullQueue,
    ZmqAsyncPushQueue,
    ZmqPubQueue,
    ZmqPullQueue,
    ZmqPushQueue,
    ZmqSubQueue,
    as_is,
)
from tests.python.waiting import PATIENCE

encode = msgspec.msgpack.encode
decoder = msgspec.msgpack.Decoder(list[int])


@pytest.fixture
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"ipc://{tmp_path_factory.mktemp('q')}/q"


def bound_push(address: str) -> zmq.Socket[bytes]:
    """The end of another program, which sends what bytes it likes."""
    socket = zmq.Context.instance().socket(zmq.PUSH)
    socket.bind(address)
    return socket


@pytest.mark.parametrize("push_binds", [True, False])
def test_push_and_pull_keep_order_whoever_binds(address: str, push_binds: bool) -> None:
    push = ZmqPushQueue(address, push_binds, as_is)
    pull = ZmqPullQueue(address, not push_binds, decoder)
    assert pull.empty()
    for number in range(5000):
        push.put([number])
    assert [pull.get() for _ in range(5000)] == [[number] for number in range(5000)]
    assert pull.empty()
    push.close()
    pull.close()


async def test_async_queues_carry_more_than_any_high_water_mark(address: str) -> None:
    push = ZmqAsyncPushQueue(address, True, as_is)
    assert push.put_nowait([0]) is False
    pull = ZmqAsyncPullQueue(address, False, decoder)
    await push.put([0])
    for number in range(1, 20_000):
        assert push.put_nowait([number])
    for number in range(20_000):
        assert await pull.get() == [number]
    assert pull.empty()
    push.close()
    pull.close()


def test_an_abstract_address_is_for_one_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for user, expected in ((os.geteuid() + 1, True), (os.geteuid(), False)):
        address = f"ipc://@minisgl-test-{os.getpid()}-{user}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "geteuid", lambda user=user: user)
            pull = ZmqPullQueue(address, True, decoder)
        push = ZmqPushQueue(address, False, as_is)
        push.put([1])
        end = time.monotonic() + (0.3 if expected else PATIENCE)
        while pull.empty() and time.monotonic() < end:
            time.sleep(0.01)
        assert pull.empty() is expected
        push.close(0)
        pull.close(0)


async def test_the_socket_file_may_go_once_both_ends_are_connected(address: str) -> None:
    push = ZmqAsyncPushQueue(address, True, as_is)
    pull = ZmqAsyncPullQueue(address, False, decoder)
    await push.put([1])
    assert await pull.get() == [1]
    os.unlink(address.removeprefix("ipc://"))
    await push.put([2])
    assert await pull.get() == [2]
    push.close()
    pull.close()


def test_malformed_messages_are_logged_and_left_out(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[bytes] = []
    push = bound_push(address)
    pull = ZmqPullQueue(address, False, decoder, on_malformed=seen.append)
    bad = [b"", b"\xc1", encode("text"), encode([1.5]), b"\x91" * 10_000]
    with caplog.at_level(logging.ERROR):
        for data in [*bad, encode([7])]:
            push.send(data)
        assert pull.get() == [7]
    assert seen == bad
    assert len(caplog.records) == len(bad)
    push.close()
    pull.close()


async def test_async_malformed_messages_too(address: str) -> None:
    push = bound_push(address)
    pull = ZmqAsyncPullQueue(address, False, decoder)
    for data in (b"\xc1", encode([7])):
        push.send(data)
    assert await asyncio.wait_for(pull.get(), PATIENCE) == [7]
    push.close()
    pull.close()


def test_a_slow_subscriber_gets_everything(address: str) -> None:
    count = 200_000  # beyond the high-water mark of both ends
    publish = ZmqPubQueue(address, True, as_is)
    subscribe = ZmqSubQueue(address, False, decoder)
    while subscribe.empty():  # until the subscription has arrived
        publish.put([-1])
    writer = threading.Thread(target=lambda: [publish.put([number]) for number in range(count)])
    writer.start()
    time.sleep(0.3)
    received = [message for message in iter(subscribe.get, [count - 1]) if message != [-1]]
    writer.join()
    assert received == [[number] for number in range(count - 1)]
    publish.close()
    subscribe.close()


def test_close_returns_though_nobody_reads(address: str) -> None:
    push = ZmqPushQueue(address, False, as_is)
    push.put([1])
    closed = threading.Event()
    threading.Thread(target=lambda: (push.close(), closed.set()), daemon=True).start()
    assert closed.wait(PATIENCE)
