"""KV events as a router outside receives them: frames, numbers, replays."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from minisgl.engine import kv_events
from minisgl.engine.kv_events import CLEARED, KvEventPublisher, KvEventsError
from minisgl.ipc.messages import BlockEvent
from tests.python.waiting import PATIENCE, until

STORED = BlockEvent("stored", "GPU", [2**64 - 1, 7], 5, [1, 2, 3, 4])
SALTED = BlockEvent("stored", "GPU", [9], None, [1, 2], b"\x01\x02")
REMOVED = BlockEvent("removed", "CPU", [7])


class Router:
    """Somebody who listens."""

    def __init__(self, folder: Path, topic: bytes) -> None:
        self._context = zmq.asyncio.Context()
        self.sub = self._context.socket(zmq.SUB)
        self.sub.connect(f"ipc://{folder}/events")
        self.sub.setsockopt(zmq.SUBSCRIBE, topic)
        self.replay = self._context.socket(zmq.DEALER)
        self.replay.connect(f"ipc://{folder}/replay")

    async def next(self) -> list[Any]:
        """Topic, number and batch."""
        topic, number, batch = await asyncio.wait_for(self.sub.recv_multipart(), PATIENCE)
        return [topic, int.from_bytes(number, "big"), msgspec.msgpack.decode(batch)]

    async def missed(self, first: int) -> list[tuple[int, Any]]:
        """Numbers and batches from `first` on."""
        await self.replay.send_multipart((b"", first.to_bytes(8, "big")))
        got = []
        while True:
            empty, number, batch = await asyncio.wait_for(self.replay.recv_multipart(), PATIENCE)
            assert empty == b""
            if not batch:
                assert number == b"\xff" * 8
                return got
            got.append((int.from_bytes(number, "big"), msgspec.msgpack.decode(batch)))

    def close(self) -> None:
        self._context.destroy(0)


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[KvEventPublisher]:
    publisher = KvEventPublisher(
        f"ipc://{tmp_path}/events", f"ipc://{tmp_path}/replay", "kv@pod@model"
    )
    yield publisher
    publisher.close()


async def subscribed(publisher: KvEventPublisher, folder: Path) -> Router:
    """A router that has got all from some batch on; those before that are lost, as PUB does."""
    router = Router(folder, b"kv@pod")
    number = 0
    while not await router.sub.poll(20):
        number += 1
        publisher.publish(number, [CLEARED])
    while (await router.next())[2][2] != number:
        pass
    return router


async def test_batches_have_the_form_that_is_published(
    publisher: KvEventPublisher, tmp_path: Path
) -> None:
    router = await subscribed(publisher, tmp_path)
    began = kv_events.time.time()
    publisher.publish(3, [STORED, REMOVED])
    topic, first, (when, events, replica) = await router.next()
    assert topic == b"kv@pod@model"
    assert began <= when <= kv_events.time.time()
    assert replica == 3
    assert events == [
        ["BlockStored", [2**64 - 1, 7], 5, [1, 2, 3, 4], 2, None, "GPU", None],
        ["BlockRemoved", [7], "CPU"],
    ]
    publisher.publish(0, [SALTED, CLEARED])
    _, second, (_, events, replica) = await router.next()
    assert second == first + 1
    assert replica == 0
    assert events == [
        ["BlockStored", [9], None, [1, 2], 2, None, "GPU", None, [["0102"]]],
        ["AllBlocksCleared"],
    ]
    router.close()


async def test_what_was_missed_is_sent_again(
    publisher: KvEventPublisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_events, "MAX_BATCHES", 150)
    monkeypatch.setattr(kv_events, "LOOK_SECONDS", 0.001)
    router = await subscribed(publisher, tmp_path)
    for number in range(300):
        publisher.publish(1, [BlockEvent("removed", "GPU", [number])])
    numbers = [(await router.next())[1] for _ in range(300)]
    await router.replay.send_multipart((b"", b"short"))  # malformed ones are nobody's business
    await router.replay.send_multipart((b"no", b"", b"\0" * 8))
    missed = await router.missed(numbers[-10])
    assert [number for number, _ in missed] == numbers[-10:]
    assert missed[-1][1][1:] == [[["BlockRemoved", [299], "GPU"]], 1]
    assert [number for number, _ in await router.missed(0)] == numbers[-150:]  # all that is kept
    assert await router.missed(2**63) == []
    router.close()


async def test_who_reads_no_replay_holds_little_of_it_and_a_further_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kv_events, "MAX_REPLAYS", 2)
    monkeypatch.setattr(kv_events, "LAG", 4)
    monkeypatch.setattr(kv_events, "LOOK_SECONDS", 0.001)
    publisher = KvEventPublisher(f"ipc://{tmp_path}/events", f"ipc://{tmp_path}/replay", "kv@pod")
    router = await subscribed(publisher, tmp_path)
    large = BlockEvent("stored", "GPU", [1], None, [2**40] * 10_000)
    for _ in range(100):
        publisher.publish(1, [large])
    context = zmq.asyncio.Context()
    readers = [context.socket(zmq.DEALER) for _ in range(2)]
    for idle in readers:
        idle.setsockopt(zmq.RCVHWM, 1)
        idle.connect(f"ipc://{tmp_path}/replay")
        await idle.send_multipart((b"", bytes(8)))
    await until(lambda: len(publisher._replays) == 2)
    assert await router.missed(0) == []
    assert "2 replays are under way, and a further one is refused" in caplog.text
    await until(lambda: not publisher._replays)
    assert caplog.text.count("takes nothing") == 2
    assert len(await router.missed(0)) >= 100
    context.destroy(0)
    router.close()
    publisher.close()


@pytest.mark.parametrize(("name", "kind"), [("events", b"SUB"), ("replay", b"DEALER")])
def test_who_sends_a_long_frame_is_cut_off_before_it_is_read(
    publisher: KvEventPublisher, tmp_path: Path, name: str, kind: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(PATIENCE)
        peer.connect(f"{tmp_path}/{name}")
        # ZMTP 3: a greeting, READY with the socket's type, and a frame of which most never comes.
        peer.sendall(
            b"\xff" + bytes(7) + b"\x01\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
        )
        ready = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
        peer.sendall(b"\x04" + bytes([len(ready)]) + ready)
        peer.sendall(b"\x02" + (2**30).to_bytes(8, "big") + b"x" * 1000)
        with contextlib.suppress(ConnectionError):
            while peer.recv(1000):
                pass


def test_it_is_closed_after_its_event_loop(publisher: KvEventPublisher) -> None:
    async def publish() -> None:
        publisher.publish(0, [CLEARED])
        await asyncio.sleep(0.01)  # waits for requests

    asyncio.run(publish())
    publisher.close()


def test_an_address_that_can_t_be_used_is_one_sentence(
    publisher: KvEventPublisher, tmp_path: Path
) -> None:
    with pytest.raises(KvEventsError, match="--kv-events-addr ipc:///no/such/folder/x can't be"):
        KvEventPublisher("ipc:///no/such/folder/x")
    with pytest.raises(KvEventsError, match="--kv-events-replay-addr ipc:///no/such/folder/x can"):
        KvEventPublisher(f"ipc://{tmp_path}/others", "ipc:///no/such/folder/x")


def test_an_address_is_taken_from_nobody_and_left_to_all(
    publisher: KvEventPublisher, tmp_path: Path
) -> None:
    taken = f"another program listens on --kv-events-addr '{tmp_path}/events': end that one"
    with pytest.raises(KvEventsError, match=taken):
        KvEventPublisher(f"ipc://{tmp_path}/events")
    publisher.close()
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "notes"
    file.write_text("precious")
    with pytest.raises(KvEventsError, match="notes' is there already, and is no socket"):
        KvEventPublisher(f"ipc://{file}")
    assert file.read_text() == "precious"
    file.unlink()
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(file))
    KvEventPublisher(f"ipc://{file}").close()
    assert list(tmp_path.iterdir()) == []
