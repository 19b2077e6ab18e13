"""Ollama's own client, from its package."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from minisgl.text.formats import AnswerFormats
from tests.python.server.conftest import MODEL, Server, StartServer
from tests.python.server.test_response_tools import ANSWER, TEMPLATE, in_turn

ollama = pytest.importorskip("ollama", reason="ollama is not installed: extra 'clients'")

ASK = [{"role": "user", "content": "hi"}]


def client(server: Server) -> Any:
    return ollama.AsyncClient(host=server.url)


async def test_answers(server: Server) -> None:
    asked = client(server)
    answer = await asked.chat(MODEL, ASK, options={"temperature": 0, "num_predict": 5})
    assert (answer.message.content, answer.done_reason) == ("Hello", "length")
    assert answer["message"]["role"] == "assistant"
    assert (answer.prompt_eval_count, answer.eval_count) == (9, 5)
    text = [part async for part in await asked.chat(MODEL, ASK, stream=True)]
    assert "".join(part.message.content for part in text) == "Hello"
    assert [part.done for part in text][-1]
    made = await asked.generate(MODEL, "hi", system="Be kind.", keep_alive="5m")
    assert (made.response, made.done_reason) == ("Hello", "stop")
    parts = [part async for part in await asked.generate(MODEL, "hi", raw=True, stream=True)]
    assert "".join(part.response for part in parts) == "Hello"
    assert (await asked.generate(MODEL, keep_alive=0)).done_reason == "unload"
    scored = await asked.chat(MODEL, ASK, logprobs=True, top_logprobs=2)
    assert [entry.token for entry in scored.logprobs] == list("Hello")
    assert all(len(entry.top_logprobs) == 2 for entry in scored.logprobs)


async def test_characters_that_end_lines(start_server: StartServer) -> None:
    text = "a\x85b\u2028c\u2029d\x0be\x1cf\r\ng"
    call = '<tool_call>\n{"name": "clock", "arguments": {"zone": "\x85\u2028"}}\n</tool_call>'
    async with start_server(
        in_turn(text, call),
        formats=AnswerFormats("hermes", "qwen3"),
        template=TEMPLATE,
        max_model_len=2048,
    ) as server:
        asked = client(server)
        parts = [part async for part in await asked.chat(MODEL, ASK, stream=True)]
        assert "".join(part.message.content for part in parts) == text
        tool = {"type": "function", "function": {"name": "clock"}}
        stream = await asked.chat(MODEL, ASK, tools=[tool], stream=True)
        calls = [call async for part in stream for call in part.message.tool_calls or ()]
        assert calls[0].function.arguments == {"zone": "\x85\u2028"}


async def test_the_client_that_blocks(server: Server) -> None:
    def ask() -> None:
        blocking = ollama.Client(host=server.url)
        assert blocking.chat(MODEL, ASK).message.content == "Hello"
        parts = blocking.generate(MODEL, "hi", stream=True)
        assert "".join(part.response for part in parts) == "Hello"
        names = [model.model for model in blocking.list().models]
        assert names == [MODEL + ":latest", "alias:latest"]
        assert blocking.chat(names[0], ASK).message.content == "Hello"

    await asyncio.to_thread(ask)


async def test_pages_and_errors(server: Server) -> None:
    asked = client(server)
    (model, _) = (await asked.list()).models
    assert (model.model, model.size) == (MODEL + ":latest", 0)
    shown = await asked.show(MODEL)
    assert shown.capabilities == ["completion"]
    assert shown.modified_at == model.modified_at
    assert (await asked.ps()).models[0].context_length == 256
    for refused, status, word in (
        (asked.chat("other", ASK), 404, "other"),
        (asked.pull(MODEL), 400, "operator"),
        (asked.chat(MODEL, ASK, think=True), 400, "think"),
        (asked.chat(MODEL, [{**ASK[0], "images": [b"hi"]}]), 400, "images"),
    ):
        with pytest.raises(ollama.ResponseError, match=word) as error:
            await refused
        assert error.value.status_code == status
        assert "{" not in error.value.error


async def test_tools_and_thoughts(start_server: StartServer) -> None:
    def clock(zone: str) -> str:
        """The time in a zone.

        Args:
          zone: where

        Returns:
          hours and minutes
        """
        return f"12:00 {zone}"

    async with start_server(
        in_turn(ANSWER, "Noon."),
        formats=AnswerFormats("hermes", "qwen3"),
        template=TEMPLATE,
        max_model_len=2048,
    ) as server:
        asked = client(server)
        answer = await asked.chat(MODEL, ASK, tools=[clock], think=True)
        assert answer.message.thinking.strip() == "I need it."
        (call,) = answer.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("clock", {"zone": "UTC"})
        given = clock(**call.function.arguments)
        result = {"role": "tool", "tool_name": "clock", "content": given}
        messages = [*ASK, answer.message, result]
        answer = await asked.chat(MODEL, messages, tools=[clock])
        assert answer.message.content == "Noon."
        ids = server.engine.submitted[-1].request.prompt
        shown = bytes(token for token in ids if token < 256).decode()
        assert "t:|12:00 UTC\n" in shown
        assert "I need it." in shown


async def test_forms(server: Server) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for form in ("json", schema):
        await client(server).chat(MODEL, ASK, format=form)
        assert '"object"' in (server.engine.submitted[-1].request.params.grammar or "")
