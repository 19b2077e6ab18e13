"""Clients that go away, that read slowly or not at all, and an engine that fails under them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import socket
import struct

import httpx
import openai
import pytest

from minisgl.engine.stream import TokenStream
from minisgl.server import connection as server_connection
from tests.python.server.conftest import MODEL, StartServer, events
from tests.python.server.fake_engine import FakeClient, endless, output, reply, taken
from tests.python.waiting import PATIENCE, until


def request(path: str = "/v1/chat/completions", **fields: object) -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
async def test_a_closed_connection_aborts_once(
    start_server: StartServer, stream: bool, n: int
) -> None:
    async with start_server(endless(delay=0.01)) as server:
        reader, writer = await server.connect()
        writer.write(request(stream=stream, n=n))
        await until(lambda: server.engine.num_live == n)
        if stream:
            await reader.readuntil(b"data: ")
        writer.close()
        await until(lambda: server.engine.num_live == 0)
        await asyncio.sleep(0.1)
        assert sorted(server.engine.aborted) == list(range(n))


async def test_a_finished_request_is_not_aborted(start_server: StartServer) -> None:
    async with start_server(reply("Hello")) as server:
        for stream in (False, True):
            assert (await server.chat(stream=stream, n=2)).status_code == 200
        assert server.engine.aborted == []


async def test_clients_that_vanish_at_every_phase(start_server: StartServer) -> None:
    """200 clients cut their connection, orderly or not, at a random byte or moment."""
    choose = random.Random(0)
    async with start_server(endless(delay=0.002)) as server:
        other = asyncio.create_task(server.chat(stream=True, max_tokens=150))

        async def vanish() -> None:
            data = request(stream=choose.random() < 0.5, n=choose.choice([1, 3]))
            reader, writer = await server.connect()
            writer.write(data[: choose.choice([0, 10, len(data) - 1, len(data)])])
            await asyncio.sleep(choose.random() * 0.05)
            if choose.random() < 0.3:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(reader.read(10), 0.05)
            if choose.random() < 0.5:  # a reset
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
            writer.close()

        await asyncio.gather(*(vanish() for _ in range(200)))
        assert (await other).text.endswith("data: [DONE]\n\n")
        await until(lambda: server.engine.num_live == 0)
        assert len(server.engine.aborted) == len(set(server.engine.aborted))
        assert len(server.engine.aborted) == len(server.engine.submitted) - 1
        await until(lambda: len(asyncio.all_tasks()) < 10)


async def test_a_client_that_never_reads(start_server: StartServer) -> None:
    """The socket fills, the stream waits, and the tokens that come meanwhile are merged."""

    async def flood(client: FakeClient, stream: TokenStream) -> None:
        for position in range(20_000):
            if stream.finished:
                return
            stream.deliver(output(stream, [ord("x")], "length" if position == 19_999 else ""))
            if position % 50 == 0:
                await asyncio.sleep(0)

    async with start_server(flood, max_model_len=30_000) as server:
        reader, writer = await server.connect()
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request(stream=True, max_tokens=20_000))
        await until(lambda: bool(server.engine.submitted))
        await server.engine.settle()
        assert (await server.chat(max_tokens=1)).status_code == 200
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        text, number = "", 0
        while (line := await asyncio.wait_for(reader.readline(), PATIENCE)) != b"data: [DONE]\n":
            if line.startswith(b"data: "):
                number += 1
                text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
        assert text == "x" * 20_000
        assert number < 20_000
        writer.close()


async def test_a_slow_reader_gets_everything_once(start_server: StartServer) -> None:
    wanted = "".join(f"{number} " for number in range(6_000))

    async def steps(client: FakeClient, stream: TokenStream) -> None:
        tokens = wanted.encode()
        for position, token in enumerate(tokens):
            await asyncio.sleep(0)
            last = position == len(tokens) - 1
            stream.deliver(output(stream, [token], "length" if last else ""))

    async with start_server(steps, max_model_len=2**16) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        reader, writer = await asyncio.open_connection(sock=connection)
        usage = {"include_usage": True}
        writer.write(request(stream=True, max_tokens=len(wanted), stream_options=usage))
        await until(lambda: server.engine.submitted and server.engine.num_live == 0)
        body = b""
        while not body.endswith(b"\r\n0\r\n\r\n"):
            body += await asyncio.wait_for(reader.read(2**16), PATIENCE)
        writer.close()
    _, _, chunked = body.partition(b"\r\n\r\n")
    text = b""
    while chunked:
        size, _, rest = chunked.partition(b"\r\n")
        text, chunked = text + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    *chunks, end = [json.loads(event) for event in events(text.decode())[:-1]]
    contents = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(contents) == wanted
    assert len(contents) < len(wanted)  # what came while the socket was full came together
    assert end["usage"]["completion_tokens"] == len(wanted)


async def test_a_client_that_takes_nothing_is_given_up(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_connection, "WRITE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(server_connection, "STALL_CHECK_S", 0.05)

    async def flood(client: FakeClient, stream: TokenStream) -> None:
        while not stream.finished:
            stream.deliver(output(stream, [ord("x")] * 50_000))
            await asyncio.sleep(0.001)

    async with start_server(flood, max_model_len=2**30) as server:
        _, writer = await server.connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request(stream=True))
        await until(lambda: server.engine.aborted == [0])
        writer.transport.abort()


async def fail(client: FakeClient, stream: TokenStream) -> None:
    """Two tokens, then the engine dies."""
    stream.deliver(output(stream, [ord("a")]))
    await taken(stream)
    stream.deliver(output(stream, [ord("b")]))
    await taken(stream)
    stream.fail("engine_failure", "a page fault at 0xdeadbeef")


async def test_a_failure_in_a_stream_is_no_clean_end(start_server: StartServer) -> None:
    async with start_server(fail) as server:
        body = b""
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012
            async with server.http.stream(
                "POST", "/v1/chat/completions", content=request(stream=True).split(b"\r\n\r\n")[1]
            ) as answer:
                assert answer.status_code == 200
                async for part in answer.aiter_bytes():
                    body += part
        last = body.decode().split("\n\n")[-2]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["code"] == "engine_failure"
        assert b"0xdeadbeef" not in body
        assert b"[DONE]" not in body

        async with server.openai() as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "hi"}], stream=True
            )
            with pytest.raises(openai.APIError):
                async for _ in stream:
                    pass


async def test_a_failure_before_the_first_token_has_a_status(start_server: StartServer) -> None:
    async def refuse(client: FakeClient, stream: TokenStream) -> None:
        code, sentence = client.state_of_failure  # type: ignore[attr-defined]
        stream.fail(code, sentence)

    async with start_server(refuse) as server:
        for code, sentence, status in (
            ("invalid_request", "temperature is wrong", 400),
            ("too_long", "the prompt is long", 400),
            ("queue_full", "", 429),
            ("engine_failure", "secret", 503),
            ("shutting_down", "", 503),
        ):
            server.engine.state_of_failure = (code, sentence)  # type: ignore[attr-defined]
            for stream in (False, True):
                answer = await server.chat(stream=stream)
                assert answer.status_code == status, code
                message = answer.json()["error"]["message"]
                assert message == sentence if status == 400 else "secret" not in message


async def test_nothing_is_left_behind(start_server: StartServer) -> None:
    async with start_server(reply("Hello", delay=0.001)) as server:
        for _ in range(3):
            await asyncio.gather(*(server.chat(stream=True, n=2) for _ in range(10)))
        await until(lambda: server.engine.num_live == 0)
        server.engine.submitted.clear()

        def left() -> list[object]:
            gc.collect()
            return [o for o in gc.get_objects() if type(o) is TokenStream]

        await until(lambda: not left())  # a task may be about to end
