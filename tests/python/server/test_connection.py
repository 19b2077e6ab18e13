"""Every way in which a connection can end, at every state of its parser and of its answer: the
server has what it had before, no task, connection, request or byte more.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Scope, Send

from minisgl.server import call, http1
from minisgl.server import connection as server_connection
from minisgl.server import listener as server_listener
from minisgl.server.addresses import Listener
from minisgl.server.call import Call
from minisgl.server.connection import Connection
from minisgl.server.http import Exchange
from minisgl.server.http1 import Http1
from minisgl.server.listener import serve_http
from tests.python.server.conftest import Server, StartServer, running
from tests.python.server.fake_engine import FakeClient, TokenStream, endless, output
from tests.python.waiting import PATIENCE, turns, until

GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
LAST_GET = b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
CHUNKED = b" HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def post(path: str = "/v1/completions", *, expect: bool = False, **fields: object) -> bytes:
    body = json.dumps({"prompt": "hi", **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
    head += "Expect: 100-continue\r\n" if expect else ""
    return head.encode() + b"\r\n" + body


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


# What a client sends next: whole requests and parts of them, so that what one begins another goes
# on with, or breaks.
PIECES = {
    "get": GET,
    "two gets": GET * 2,
    "many gets": GET * 50,
    "many large pages": LAST_GET.replace(b"Connection: close\r\n", b"") * 20,
    "the last get": LAST_GET,
    "half a head": half(GET),
    "a line's end": b"\r\n\r\n",
    "a completion": post(max_tokens=3),
    "a stream": post(max_tokens=20, stream=True),
    "a long stream": post(max_tokens=200, stream=True),
    "two streams": post(max_tokens=5, stream=True) * 2,
    "half a body": half(post(max_tokens=2, user="x" * 300)),
    "a body that is waited for": post(expect=True, max_tokens=2),
    "chunks begin": b"POST /v1/completions" + CHUNKED,
    "chunks for a page": b"GET /health" + CHUNKED,
    "chunks for nobody": b"POST /nowhere" + CHUNKED,
    "a chunk": b"5\r\n     \r\n",
    "tiny chunks": b"1\r\na\r\n" * 3000,
    "the last chunk": b"0\r\n\r\n",
    "garbage": b"\x00\xff garbage\r\n\r\n",
    "a lot": b"x" * 100_000,
}
ENDS = ("close", "reset", "half-close", "stay")
STEPS = st.lists(
    st.one_of(
        st.sampled_from(sorted(PIECES)),
        st.sampled_from(["pause", "read"]),
    ),
    max_size=6,
)


@dataclass
class Walks:
    """A server, and the loop that it runs on."""

    loop: asyncio.AbstractEventLoop
    server: Server
    tasks: int  # of the server alone

    async def walk(self, steps: list[str], end: str) -> None:
        """One client's life."""
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        try:
            await self.loop.sock_connect(raw, ("127.0.0.1", self.server.port))
            for step in steps:
                await self._step(raw, step)
            if end == "half-close":
                with contextlib.suppress(OSError):
                    raw.shutdown(socket.SHUT_WR)
            elif end != "stay":
                if end == "reset":
                    linger = struct.pack("ii", 1, 0)
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                raw.close()
            await self.settle()
        finally:
            raw.close()

    async def _step(self, raw: socket.socket, step: str) -> None:
        if step == "pause":
            await asyncio.sleep(0.005)
            return
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            work: Awaitable[object] = (
                self.loop.sock_recv(raw, 10_000)
                if step == "read"
                else self.loop.sock_sendall(raw, PIECES[step])
            )
            await asyncio.wait_for(work, 0.05)

    async def settle(self) -> None:
        """Waits until the server has what it had before."""
        end = self.loop.time() + PATIENCE
        state = self.server.state
        while (
            len(asyncio.all_tasks()) > self.tasks + 1
            or self.server.engine.num_live
            or state.bodies.used
        ):
            assert self.loop.time() < end, asyncio.all_tasks()
            await asyncio.sleep(0.002)


@pytest.fixture(params=["long", "short"])
def walks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Walks]:
    """With long time limits, which nobody's end may need, or short ones."""
    monkeypatch.setattr(server_connection, "WRITE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(server_connection, "STALL_CHECK_S", 0.02)
    monkeypatch.setattr(server_connection, "LINGER_S", 0.1)
    monkeypatch.setattr(call, "MAX_UNREAD", 1000)
    monkeypatch.setattr(http1, "MAX_AHEAD", 1000)
    timeout = 100.0
    if request.param == "short":
        timeout = 0.1
        monkeypatch.setattr(http1, "KEEP_ALIVE_S", timeout)
    loop = uvloop.new_event_loop()
    context = running(endless(delay=0.0005), body_timeout=timeout)
    server = loop.run_until_complete(context.__aenter__())
    loop.run_until_complete(turns())  # its own tasks have begun
    walks = Walks(loop, server, len(asyncio.all_tasks(loop)))
    yield walks
    loop.run_until_complete(context.__aexit__(None, None, None))
    loop.close()


def test_nothing_is_left_of_any_connection(walks: Walks, request: pytest.FixtureRequest) -> None:
    # A client that merely stays is ended by the short limits alone.
    ends = ENDS if request.node.callspec.params["walks"] == "short" else ENDS[:-1]

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(steps=STEPS, end=st.sampled_from(ends))
    def walk(steps: list[str], end: str) -> None:
        walks.loop.run_until_complete(walks.walk(steps, end))

    walk()
    answer = walks.loop.run_until_complete(walks.server.http.get("/health"))
    assert answer.status_code == 200
    walks.loop.run_until_complete(walks.server.http.aclose())
    walks.loop.run_until_complete(walks.settle())

    def left() -> list[object]:
        gc.collect()
        return [o for o in gc.get_objects() if type(o) in (Connection, Http1, Call, Exchange)]

    walks.loop.run_until_complete(until(lambda: not left()))  # the last one may linger


async def test_what_a_client_sent_before_it_left_is_not_read_to_its_end(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiny chunks cost a thousand times what they cost to send."""
    handled = 0
    add_body = Call.add_body

    def count(call: Call, data: bytes) -> None:
        nonlocal handled
        handled += 1
        add_body(call, data)

    monkeypatch.setattr(Call, "add_body", count)
    async with start_server() as server:
        await turns()  # its own tasks have begun
        before = len(asyncio.all_tasks())
        with socket.create_connection(("127.0.0.1", server.port)) as raw:  # the loop stands still
            raw.sendall(b"POST /v1/completions" + CHUNKED + b"1\r\na\r\n" * 8000)
        await until(lambda: handled and len(asyncio.all_tasks()) <= before + 1)  # that of until()
        assert handled < 1000


async def flood(client: FakeClient, stream: TokenStream) -> None:
    while not stream.finished:
        stream.deliver(output(stream, [ord("x")] * 50_000))
        await asyncio.sleep(0.001)


DEAF: dict[str, bytes] = {
    "a stream": post(stream=True),
    "metrics": LAST_GET.replace(b"Connection: close\r\n", b"") * 5000,
    "one large answer": post("/tokenize", prompt="ab" * 500_000, return_token_strs=True),
}


@pytest.mark.parametrize("kind", sorted(DEAF))
async def test_a_client_that_takes_nothing_is_cut(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(server_connection, "WRITE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(server_connection, "STALL_CHECK_S", 0.05)
    loop = asyncio.get_running_loop()
    async with start_server(flood, max_model_len=2**30) as server:
        await turns()  # its own tasks have begun
        before = len(asyncio.all_tasks())
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        await loop.sock_connect(raw, ("127.0.0.1", server.port))
        with contextlib.suppress(asyncio.TimeoutError, ConnectionError):
            await asyncio.wait_for(loop.sock_sendall(raw, DEAF[kind]), 1)
        await until(lambda: len(asyncio.all_tasks()) <= before + 1 and not server.engine.num_live)
        with pytest.raises(ConnectionError):  # noqa: PT012
            while await loop.sock_recv(raw, 2**16):
                pass
        raw.close()


async def test_a_slow_reader_is_not_cut(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a little, more often than the limit."""
    monkeypatch.setattr(server_connection, "WRITE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(server_connection, "STALL_CHECK_S", 0.02)
    loop = asyncio.get_running_loop()
    async with start_server(max_model_len=2**22) as server:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        await loop.sock_connect(raw, ("127.0.0.1", server.port))
        text = post("/tokenize", prompt="ab" * 1_000_000, return_token_strs=True)
        await loop.sock_sendall(raw, text.replace(b"Host: a", b"Host: a\r\nConnection: close"))
        began, received = loop.time(), b""
        while part := await loop.sock_recv(raw, 2**17):
            received += part
            if loop.time() - began < 1.5:
                await asyncio.sleep(0.1)
        _, _, body = received.partition(b"\r\n\r\n")
        assert json.loads(body)["count"] == 2_000_000
        raw.close()


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(0.05)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.sleep(0.05)
    await send({"type": "http.response.body", "body": b"done", "more_body": False})


async def give_up(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(0.05)


async def fail(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(0.05)
    raise ValueError("a fault of the application's")


@pytest.mark.parametrize("application", [answer, give_up, fail])
@pytest.mark.parametrize("stays", [True, False])
async def test_an_application_that_reads_nothing(application: ASGIApp, stays: bool) -> None:
    listener = Listener.bind("127.0.0.1", 0)
    listener.listen()
    port = listener.port
    stop = asyncio.Event()
    server = asyncio.create_task(serve_http(application, listener, stop.wait))
    await turns()
    before = len(asyncio.all_tasks())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    large = b"20000\r\n" + b"a" * 0x20000 + b"\r\n"
    writer.write(b"POST /" + CHUNKED + large + PIECES["tiny chunks"])
    if stays:
        status = b"200" if application is answer else b"500"
        assert (await asyncio.wait_for(reader.read(), PATIENCE)).startswith(b"HTTP/1.1 " + status)
    writer.close()
    await until(lambda: len(asyncio.all_tasks()) <= before + 1)  # that of until()
    stop.set()
    await server


def test_those_who_come_at_once_are_heard_within_some_turns_of_the_loop() -> None:
    """Where streams run a turn takes milliseconds, and uvloop accepts one connection per socket in
    it.
    """
    num_clients, heard = 64, 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal heard
        heard += 1

    async def run() -> int:
        listener, stop, num_turns = Listener.bind("127.0.0.1", 0), asyncio.Event(), 0
        listener.listen()
        with contextlib.ExitStack() as stack:
            stack.callback(listener.close)
            for _ in range(num_clients):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", listener.port)))
                client.sendall(GET)
            server = asyncio.create_task(serve_http(app, listener, stop.wait))
            while heard < num_clients:
                await asyncio.sleep(0)
                num_turns += heard > 0
            stop.set()
            await server
        return num_turns

    assert uvloop.run(run()) < num_clients / 2


async def more_than_is_read(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(2**24), "more_body": False})


async def test_the_end_waits_for_no_client_that_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_listener, "GRACEFUL_SECONDS", 0.05)
    before = asyncio.all_tasks()
    async with a_request(more_than_is_read) as (server, stop):
        stop.set()
        await asyncio.wait_for(server, PATIENCE)
        assert asyncio.all_tasks() == before


async def test_a_server_that_is_cancelled_while_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends as cancelled tasks do, and nothing of it goes on."""
    monkeypatch.setattr(server_listener, "GRACEFUL_SECONDS", 0.05)
    told, go_on = asyncio.Event(), asyncio.Event()

    async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            told.set()
            await go_on.wait()
            raise

    before = asyncio.all_tasks()
    async with a_request(stubborn) as (server, stop):
        stop.set()
        await asyncio.wait_for(told.wait(), PATIENCE)
        server.cancel()
        await turns()
        go_on.set()
        await asyncio.wait({server}, timeout=PATIENCE)
        assert server.cancelled()
        await until(lambda: len(asyncio.all_tasks()) <= len(before) + 1)  # that of until()


@contextlib.asynccontextmanager
async def a_request(app: ASGIApp) -> AsyncIterator[tuple[asyncio.Task[None], asyncio.Event]]:
    """A server of that application, with what ends it, that has a request of a client that reads
    no answer.
    """
    begun = asyncio.Event()

    async def noted(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await app(scope, receive, send)

    listener = Listener.bind("127.0.0.1", 0)
    listener.listen()
    port, stop = listener.port, asyncio.Event()
    server = asyncio.create_task(serve_http(noted, listener, stop.wait))
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(GET)
        await begun.wait()
        yield server, stop
