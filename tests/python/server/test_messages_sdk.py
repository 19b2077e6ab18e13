"""The anthropic SDK as a client of /v1/messages."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.python.server.conftest import MODEL, Server, StartServer, prompt
from tests.python.server.fake_engine import endless, reply
from tests.python.server.test_messages import CLOCK
from tests.python.server.test_response_tools import ANSWER, FORMATS, TEMPLATE, in_turn

anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed: extra 'clients'")

ASKED: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 200,
    "messages": [{"role": "user", "content": "hi"}],
}
TOOLS = {"formats": FORMATS, "template": TEMPLATE, "max_model_len": 1024}


def client(server: Server, **options: Any) -> Any:
    options = {"api_key": "none", "max_retries": 0, **options}
    return anthropic.AsyncAnthropic(base_url=server.url, **options)


async def test_create_and_stream(server: Server) -> None:
    async with client(server) as sdk:
        message = await sdk.messages.create(**ASKED)
        assert (message.content[0].text, message.stop_reason) == ("Hello", "end_turn")
        assert message._request_id
        stopped = await sdk.messages.create(**ASKED, stop_sequences=["lo"])
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "lo")
        async with sdk.messages.stream(**ASKED) as stream:
            words = [text async for text in stream.text_stream]
            final = await stream.get_final_message()
        assert "".join(words) == "Hello"
        assert final.usage == message.usage
        assert final.content[0].text == "Hello"
        kinds = [event.type async for event in await sdk.messages.create(**ASKED, stream=True)]
        assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
        beta = await sdk.beta.messages.create(**ASKED, betas=["context-management-2025-06-27"])
        assert beta.content[0].text == "Hello"


async def test_without_asyncio(server: Server) -> None:
    def ask() -> tuple[str, str]:
        with anthropic.Anthropic(base_url=server.url, auth_token="none") as sdk:
            message = sdk.messages.create(**ASKED)
            with sdk.messages.stream(**ASKED) as stream:
                return message.content[0].text, stream.get_final_text()

    assert await asyncio.to_thread(ask) == ("Hello", "Hello")


async def test_tools(start_server: StartServer) -> None:
    script = in_turn(ANSWER, "It is noon.", ANSWER, "It is noon.")
    async with start_server(script, **TOOLS) as server, client(server) as sdk:
        messages = list(ASKED["messages"])
        for streamed in (False, True):
            fields = {**ASKED, "tools": [CLOCK], "messages": messages}
            if streamed:
                async with sdk.messages.stream(**fields) as stream:
                    answer = await stream.get_final_message()
            else:
                answer = await sdk.messages.create(**fields)
            thought, words, call = answer.content
            assert answer.stop_reason == "tool_use"
            assert (thought.thinking, words.text) == ("I need it.", "Let me see.")
            assert (call.name, call.input) == ("clock", {"zone": "UTC"})
            result = {"type": "tool_result", "tool_use_id": call.id, "content": "12:00"}
            messages += [
                {"role": "assistant", "content": answer.content},
                {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
            ]
            last = await sdk.messages.create(**{**fields, "messages": messages})
            assert last.content[0].text == "It is noon."
            messages.append({"role": "assistant", "content": last.content})
            messages.append({"role": "user", "content": "Again."})
            assert prompt(server).endswith("\nt:|12:00\nu:|So?\na:")


async def test_the_tool_runner(start_server: StartServer) -> None:
    zones = []

    @anthropic.beta_async_tool
    async def clock(zone: str) -> str:
        """The time in a zone.

        Args:
            zone: its name
        """
        zones.append(zone)
        return "12:00"

    script = in_turn(ANSWER, "It is noon.")
    async with start_server(script, **TOOLS) as server, client(server) as sdk:
        runner = sdk.beta.messages.tool_runner(**ASKED, tools=[clock])
        final = await runner.until_done()
        assert (final.content[0].text, zones) == ("It is noon.", ["UTC"])
        assert "t:|12:00" in prompt(server)


async def test_count_tokens(start_server: StartServer) -> None:
    async with start_server(reply("x"), **TOOLS) as server, client(server) as sdk:
        asked = {"model": MODEL, "messages": ASKED["messages"], "tools": [CLOCK], "system": "Hm."}
        counted = await sdk.messages.count_tokens(**asked)
        message = await sdk.messages.create(**asked, max_tokens=10)
        assert counted.input_tokens == message.usage.input_tokens


async def test_structured_output(start_server: StartServer) -> None:
    pytest.importorskip("llguidance")
    pydantic = pytest.importorskip("pydantic")

    class Point(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        x: int

    async with start_server(reply('{"x": 3}')) as server, client(server) as sdk:
        message = await sdk.messages.parse(**ASKED, output_format=Point)
        assert message.parsed_output == Point(x=3)
        assert server.engine.submitted[-1].request.params.grammar is not None


async def test_errors(start_server: StartServer) -> None:
    async with start_server(endless(), max_live=0, api_key=("key",)) as server:
        async with client(server) as sdk:
            with pytest.raises(anthropic.AuthenticationError, match="x-api-key"):
                await sdk.messages.create(**ASKED)
        async with client(server, api_key="key") as sdk:
            with pytest.raises(anthropic.RateLimitError) as busy:
                await sdk.messages.create(**ASKED)
            assert busy.value.body["error"]["type"] == "rate_limit_error"
            assert busy.value.request_id
            with pytest.raises(anthropic.NotFoundError, match="claude"):
                await sdk.messages.create(**{**ASKED, "model": "claude"})
            long = [{"role": "user", "content": "x" * 300}]
            with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
                await sdk.messages.create(**{**ASKED, "messages": long})


async def test_models(start_server: StartServer) -> None:
    async with start_server(reply("Hello"), api_key=("key",)) as server:
        async with client(server, api_key="key") as sdk:
            listed, _ = [model async for model in sdk.models.list()]
            assert (listed.id, listed.type, listed.display_name) == (MODEL, "model", MODEL)
            assert listed.created_at.timestamp() == listed.created
            assert await sdk.models.retrieve(MODEL) == listed
        async with client(server, api_key="another") as sdk:
            with pytest.raises(anthropic.AuthenticationError, match="x-api-key"):
                await sdk.models.list()
