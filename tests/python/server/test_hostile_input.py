"""Whatever a client sends gets an answer with an OpenAI error body, and the streams of others go
on.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading

import pytest
from starlette.types import Message

from minisgl.server.errors import ApiError
from minisgl.server.http import BodyRoom, read_body
from minisgl.text.frontend import NUM_ENCODE_THREADS
from minisgl.text.waiting_line import WaitingLine
from tests.python.server.bad_requests import BAD_REQUESTS, content_of
from tests.python.server.conftest import Server, StartServer, events
from tests.python.server.fake_engine import endless
from tests.python.waiting import PATIENCE, until


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_bad_request(server: Server, name: str) -> None:
    path, body, param = BAD_REQUESTS[name]
    answer = await server.http.post(
        path, content=content_of(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 1000
    if param is not None:
        assert error["param"] == param, error
    assert not server.engine.live


async def test_many_choices_that_are_refused_late_leave_nothing(start_server: StartServer) -> None:
    async with start_server(endless(), max_live=5) as server:
        running = asyncio.create_task(server.chat(max_tokens=500))
        await until(lambda: server.engine.num_live == 1)
        answer = await server.chat(n=5, temperature=1)
        assert answer.status_code == 429
        assert "5 requests are live" in answer.json()["error"]["message"]
        await until(lambda: server.engine.num_live == 1)
        assert sorted(server.engine.aborted) == [1, 2, 3, 4]
        running.cancel()


async def test_other_streams_go_on(start_server: StartServer) -> None:
    async with start_server(endless(delay=0.002), max_body_bytes=2**20) as server:
        stream = asyncio.create_task(server.chat(stream=True, max_tokens=200))
        while not server.engine.live:
            await asyncio.sleep(0.001)
        for path, body, _ in BAD_REQUESTS.values():
            answer = await server.http.post(path, content=content_of(body))
            assert answer.status_code in (400, 413)
        *chunks, done = events((await stream).text)
        text = "".join(
            json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks
        )
        assert (text, done) == ("x" * 200, "[DONE]")


async def test_a_long_prompt_does_not_hold_up_others(server: Server) -> None:
    long = asyncio.create_task(server.complete("word " * 600_000))
    answered = 0
    while not long.done():
        assert (await server.http.get("/health")).status_code == 200
        answered += 1
        await asyncio.sleep(0.005)
    assert (await long).status_code == 400
    assert (await long).json()["error"]["code"] == "context_length_exceeded"
    assert answered >= 1


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
async def test_a_text_of_a_million_tokens_is_neither_cut_nor_counted(
    server: Server, path: str
) -> None:
    long = "7" * 1_200_000
    chat = path == "/v1/chat/completions"
    body = {"messages": [{"role": "user", "content": long}]} if chat else {"prompt": long}
    answer = await server.http.post(path, json={**body, "truncate_prompt_tokens": 3})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    sentence = (
        r"Texts of up to 1048576 tokens are tokenized, but the prompt has at least \d{7} tokens\."
    )
    assert re.fullmatch(sentence, error["message"])
    assert error["param"] == ("messages" if chat else "prompt")
    assert error["code"] == "context_length_exceeded"


async def test_bodies_count_and_long_prompts_queue_until_they_are_tokenized(
    start_server: StartServer,
) -> None:
    async with start_server(max_model_len=20_000) as server:
        text, bodies = server.state.text, server.state.bodies
        assert text is not None
        text._line = WaitingLine(limit=15_000)
        go_on = threading.Event()
        for _ in range(NUM_ENCODE_THREADS):  # all of them are busy
            text._threads.submit(go_on.wait, PATIENCE)
        first = asyncio.create_task(server.complete("a" * 10_000))
        while not text._line._waiting:
            await asyncio.sleep(0.005)
        assert bodies.used > 10_000
        refused = await server.complete("b" * 10_000)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) > 0
        assert (await server.complete("short")).status_code == 200
        go_on.set()
        assert (await first).status_code == 200
        assert bodies.used == 0


async def test_a_body_that_is_refused_on_its_way_is_let_go() -> None:
    """Though what was raised, and the frames that it went through, live on."""
    parts: list[Message] = [
        {"type": "http.request", "body": b"a" * 1000, "more_body": True} for _ in range(3)
    ]

    async def receive() -> Message:
        return parts.pop()

    room = BodyRoom(limit=2500)
    with pytest.raises(ApiError) as error:
        await read_body({"headers": []}, receive, room, max_bytes=10_000, timeout=20)
    (body,) = [
        entry.frame.f_locals["body"] for entry in error.traceback if "body" in entry.frame.f_locals
    ]
    assert (len(body), room.used) == (0, 0)
