"""The queues of minisgl.ipc in programs that aren't the server: messages of their own, encoders and
decoders between them and dicts.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import pytest
import zmq

import minisgl.ipc
from minisgl.ipc import (
    ZmqAsyncPubQueue,
    ZmqAsyncPullQueue,
    ZmqAsyncPushQueue,
    ZmqAsyncSubQueue,
    ZmqPubQueue,
    ZmqPullQueue,
    ZmqPushQueue,
    ZmqSubQueue,
)
from tests.python.ports import LOOPBACK, free_port
from tests.python.waiting import PATIENCE


@dataclass
class Prompt:
    uid: int
    text: str
    image: bytes = b""
    scores: list[float] = dataclasses.field(default_factory=list)


def prompt_of(fields: dict[str, Any]) -> Prompt:
    return Prompt(**fields)


PROMPTS = [Prompt(1, "gr\u00fcn \U0001f600", b"\xff\x00", [0.5, -1e300]), Prompt(2**63 - 1, "")]


@pytest.fixture(params=["ipc", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "ipc":
        return f"ipc://{tmp_path_factory.mktemp('q')}/q"
    return f"tcp://{LOOPBACK}:{free_port()}"


@pytest.mark.parametrize("push_binds", [True, False])
@pytest.mark.parametrize("push_first", [True, False])
def test_push_and_pull(address: str, push_binds: bool, push_first: bool) -> None:
    def make_push() -> ZmqPushQueue[Prompt]:
        return ZmqPushQueue(address, create=push_binds, encoder=asdict)

    def make_pull() -> ZmqPullQueue[Prompt]:
        return ZmqPullQueue(address, create=not push_binds, decoder=prompt_of)

    if push_first:
        push, pull = make_push(), make_pull()
    else:
        pull, push = make_pull(), make_push()
    assert pull.empty()
    for prompt in PROMPTS:
        push.put(prompt)
    assert pull.get() == PROMPTS[0]
    assert not_empty_soon(pull.empty)
    assert pull.get() == PROMPTS[1]
    assert pull.empty()
    push.close()
    pull.close()


def not_empty_soon(empty: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while empty() and time.monotonic() < deadline:
        time.sleep(0.001)
    return not empty()


async def test_async_push_and_pull(address: str) -> None:
    pull = ZmqAsyncPullQueue(address, True, prompt_of)
    push: ZmqAsyncPushQueue[Prompt] = ZmqAsyncPushQueue(address, False, asdict)
    waiting = asyncio.create_task(pull.get())
    await push.put(PROMPTS[0])
    assert await asyncio.wait_for(waiting, PATIENCE) == PROMPTS[0]
    assert pull.empty()
    await push.put(PROMPTS[1])
    assert await asyncio.wait_for(pull.get(), PATIENCE) == PROMPTS[1]
    push.close()
    pull.close()


@pytest.mark.parametrize("publisher_binds", [True, False])
def test_every_subscriber_gets_what_is_published(address: str, publisher_binds: bool) -> None:
    publish: ZmqPubQueue[dict[str, int]] = ZmqPubQueue(address, publisher_binds, dict)
    readers = [ZmqSubQueue(address, not publisher_binds, dict)]
    if publisher_binds:  # as many as like connect to an end that binds
        readers.append(ZmqSubQueue(address, False, dict))
    while any(reader.empty() for reader in readers):  # until the subscriptions have arrived
        publish.put({"n": -1})
        time.sleep(0.01)
    publish.put({"n": 1})
    for reader in readers:
        assert {"n": 1} in (reader.get() for _ in range(10_000))
        reader.close()
    publish.close()


async def test_async_publisher_and_subscriber(address: str) -> None:
    publish: ZmqAsyncPubQueue[Prompt] = ZmqAsyncPubQueue(address, True, asdict)
    subscribe = ZmqAsyncSubQueue(address, False, prompt_of)
    while subscribe.empty():  # until the subscription has arrived
        await publish.put(PROMPTS[0])
        await asyncio.sleep(0.01)
    await publish.put(PROMPTS[1])
    while (received := await asyncio.wait_for(subscribe.get(), PATIENCE)) != PROMPTS[1]:
        assert received == PROMPTS[0]
    publish.close()
    subscribe.close()


def test_text_and_bytes_stay_what_they_are(address: str) -> None:
    sent = {"text": "a", "bytes": b"a", "list": [1, None, True, 1.5], "map": {"k": {}}}
    push: ZmqPushQueue[dict[str, Any]] = ZmqPushQueue(address, True, dict)
    pull = ZmqPullQueue(address, False, dict)
    push.put(sent)
    push.put({"tuple": (1, 2)})
    got = pull.get()
    assert got == sent
    assert [type(value) for value in got.values()] == [str, bytes, list, dict]
    assert pull.get() == {"tuple": [1, 2]}
    push.close()
    pull.close()


def test_another_program_reads_and_writes_plain_msgpack(address: str) -> None:
    push: ZmqPushQueue[Prompt] = ZmqPushQueue(address, True, asdict)
    with zmq.Context() as context, context.socket(zmq.PULL) as reader:
        reader.connect(address)
        push.put(PROMPTS[1])
        data = reader.recv()
    assert data == b"\x84\xa3uid\xcf" + (2**63 - 1).to_bytes(8, "big") + (
        b"\xa4text\xa0\xa5image\xc4\x00\xa6scores\x90"  # \xc4: bytes; \xa0: text
    )
    push.close()


def test_a_typed_decoder_reads_the_bytes_itself(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    push: ZmqPushQueue[Any] = ZmqPushQueue(address, True, dict)
    pull = ZmqPullQueue(address, False, msgspec.msgpack.Decoder(Prompt))
    push.put({"uid": "seven", "text": "a"})
    push.put({"uid": 7, "text": "a"})
    assert pull.get() == Prompt(7, "a")
    assert "Expected `int`, got `str` - at `$.uid`" in caplog.text
    push.close()
    pull.close()


class Opaque:
    pass


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (Opaque(), TypeError, "Encoding objects of type .*Opaque is unsupported"),
        (2**64, OverflowError, "serialize ints"),
    ],
)
async def test_what_has_no_msgpack_is_refused_and_nothing_is_sent(
    address: str, value: Any, error: type[Exception], words: str
) -> None:
    pull = ZmqPullQueue(address, True, dict)
    push: ZmqPushQueue[Any] = ZmqPushQueue(address, False, dict)
    more: ZmqAsyncPushQueue[Any] = ZmqAsyncPushQueue(address, False, dict)
    with pytest.raises(error, match=words):
        push.put({"value": value})
    with pytest.raises(error, match=words):
        await more.put({"value": value})
    with pytest.raises(error, match=words):
        more.put_nowait({"value": value})
    push.put({"value": 1})
    assert pull.get() == {"value": 1}
    for queue in (push, pull, more):
        queue.close()


def test_a_malformed_message_is_named_and_left_out(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[bytes] = []
    pull = ZmqPullQueue(
        address,
        True,
        lambda fields: Prompt(fields["uid"], fields["text"]),
        on_malformed=seen.append,
    )
    bad = [b"\xc1", *(msgspec.msgpack.encode(value) for value in ({"uid": 1}, [1], 7, None))]
    with zmq.Context() as context, context.socket(zmq.PUSH) as writer:
        writer.connect(address)
        with caplog.at_level(logging.ERROR):
            for data in [*bad, msgspec.msgpack.encode({"uid": 1, "text": "a"})]:
                writer.send(data)
            assert pull.get() == Prompt(1, "a")
    assert seen == bad
    assert "dropped a malformed message of 6 bytes: KeyError: 'text'" in caplog.text
    pull.close()


def test_a_fault_of_the_decoder_is_its_own(address: str) -> None:
    push: ZmqPushQueue[Any] = ZmqPushQueue(address, True, dict)
    pull = ZmqPullQueue(address, False, lambda fields: 1 // 0)
    push.put({})
    with pytest.raises(ZeroDivisionError):
        pull.get()
    push.close()
    pull.close()


def test_a_process_that_ends_delivers_what_it_put(address: str) -> None:
    program = (
        "import sys\n"
        "from minisgl.ipc import ZmqPushQueue\n"
        "push = ZmqPushQueue(sys.argv[1], False, dict)\n"
        "push.put({'size': len(sys.argv), 'data': bytes(2**24)})\n"
        "push.close()\n"
        "print('put', flush=True)\n"
    )
    command = [sys.executable, "-c", program, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "put\n"
        pull = ZmqPullQueue(address, True, dict)  # which wasn't there before
        assert not_empty_soon(pull.empty)
        assert pull.get() == {"size": 2, "data": bytes(2**24)}
    assert process.returncode == 0
    pull.close()


def test_all_queues_are_names_of_the_package() -> None:
    kinds = ("Push", "Pull", "Pub", "Sub")
    names = [f"Zmq{manner}{kind}Queue" for manner in ("", "Async") for kind in kinds]
    assert dir(minisgl.ipc) == sorted(names)
    assert all(getattr(minisgl.ipc, name).__name__ == name for name in names)
    with pytest.raises(AttributeError, match="ZmqPairQueue"):
        _ = minisgl.ipc.ZmqPairQueue
