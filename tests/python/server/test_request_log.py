"""The line about each request at log-level debug."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pytest

from tests.python.server.conftest import Server, StartServer
from tests.python.server.fake_engine import endless, reply
from tests.python.server.test_disconnect import request
from tests.python.waiting import until


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "minisgl.requests")
    return caplog


def fields(log: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [line.fields for line in log.records if line.name == "minisgl.requests"]  # type: ignore[attr-defined]


async def test_a_request_has_one_line(
    start_server: StartServer, log: pytest.LogCaptureFixture
) -> None:
    async with start_server(reply("Hello", delay=0.001)) as server:
        answer = await server.chat(stream=True)
        await until(lambda: fields(log))
        (line,) = fields(log)
        assert line["request_id"] == answer.headers["x-request-id"]
        assert (line["method"], line["route"]) == ("POST", "/v1/chat/completions")
        assert (line["status"], line["reason"]) == (200, "stop")
        assert (line["prompt_tokens"], line["generated_tokens"]) == (9, 6)
        assert line["queued_s"] == 0.001
        assert 0 < line["first_token_s"] < line["end_s"] < 10
        assert re.fullmatch(
            r"request \w{32}: POST /v1/chat/completions 200, 9 prompt tokens, queued 0\.0010 s, "
            r"first token after \d\.\d{4} s, 6 tokens, ended after \d\.\d{4} s: stop",
            log.messages[-1],
        )


async def test_why_requests_end(start_server: StartServer, log: pytest.LogCaptureFixture) -> None:
    async with start_server(reply("Hello")) as server:
        await server.complete(["a", "b"], max_tokens=2, n=2)
        await server.complete("a" * 1000)
        await server.complete("a", max_tokens=-2)
        await server.http.get("/version")
        await server.http.get("/nothing/here")
        await until(lambda: len(fields(log)) == 5)
        assert [line["reason"] for line in fields(log)] == [
            "length",
            "context_length_exceeded",
            "invalid_value",
            "answered",
            "unknown_url",
        ]
        assert fields(log)[0]["generated_tokens"] == 8
        assert [line["route"] for line in fields(log)][-2:] == ["/version", "other"]
        assert "nothing" not in log.messages[-1]


async def test_a_stop_string_in_the_last_token_is_the_reason(
    start_server: StartServer, log: pytest.LogCaptureFixture
) -> None:
    async with start_server(reply("Hello")) as server:
        answer = await server.complete("a", max_tokens=2, stop="e")
        assert answer.json()["choices"][0]["finish_reason"] == "stop"
        await until(lambda: fields(log))
        assert fields(log)[0]["reason"] == "stop"
        assert server.state.metrics.finished["stop"] == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves(
    start_server: StartServer, log: pytest.LogCaptureFixture, stream: bool
) -> None:
    async with start_server(endless(delay=0.01)) as server:
        reader, writer = await server.connect()
        writer.write(request(stream=stream))
        await until(lambda: server.engine.num_live == 1)
        if stream:
            await reader.readuntil(b"data: ")
        writer.close()
        await until(lambda: fields(log))
        (line,) = fields(log)
        assert (line["reason"], line["status"]) == ("client_gone", 200 if stream else 499)
        assert line["prompt_tokens"] == 9


async def test_no_line_at_other_levels(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await server.chat()
    await asyncio.sleep(0.05)
    assert not fields(caplog)


async def test_a_key_is_named_by_its_number(
    start_server: StartServer, log: pytest.LogCaptureFixture
) -> None:
    async with start_server(reply("Hello"), api_key=("first-key", "second-key")) as server:
        for key in ("second-key", "wrong-key"):
            await server.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})
        await server.http.get("/health")
        await until(lambda: len(fields(log)) == 3)
        assert [line.get("api_key") for line in fields(log)] == [1, None, None]
        assert "-key" not in str([*fields(log), *log.messages])
