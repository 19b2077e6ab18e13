"""The anthropic SDK: the loop of tools, forms, streams and counts over /v1/messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.python.clients.conftest import MODEL
from tests.python.clients.forms import Plan, Weather

anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed: extra 'clients'")

ASKED: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 4000,
    "system": [{"type": "text", "text": "Act.", "cache_control": {"type": "ephemeral"}}],
    "messages": [{"role": "user", "content": "Go on."}],
}
TOOL = {"name": "weather", "input_schema": Weather.model_json_schema()}
ONE_CALL = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
FORCED = {**ASKED, "tools": [TOOL], "tool_choice": ONE_CALL}


@pytest.fixture
async def sdk(address: str) -> AsyncIterator[Any]:
    async with anthropic.AsyncAnthropic(api_key="none", base_url=address, max_retries=0) as sdk:
        yield sdk


async def test_tools(sdk: Any) -> None:
    async with sdk.messages.stream(**FORCED) as stream:
        streamed = await stream.get_final_message()
    whole = await sdk.messages.create(**FORCED)
    for answer in (streamed, whole):
        assert answer.stop_reason == "tool_use"
        [call] = answer.content
        Weather.model_validate(call.input)
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": "Fair."}
        for call in whole.content
    ]
    conversation = [
        *ASKED["messages"],
        {"role": "assistant", "content": whole.content},
        {"role": "user", "content": results},
    ]
    last = await sdk.messages.create(
        **{**ASKED, "messages": conversation, "tools": [TOOL], "max_tokens": 20}
    )
    counted = await sdk.messages.count_tokens(
        model=MODEL, system=ASKED["system"], messages=conversation, tools=[TOOL]
    )
    usage = last.usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
    assert usage.cache_read_input_tokens > 0


async def test_a_form(sdk: Any) -> None:
    # Given as it is: the SDK's parse() leaves limits out, which a random model doesn't keep then.
    form = {"format": {"type": "json_schema", "schema": Plan.model_json_schema()}}
    message = await sdk.messages.create(**ASKED, extra_body={"output_config": form})
    assert message.stop_reason == "end_turn"
    Plan.model_validate_json(message.content[0].text)


async def test_a_stream(sdk: Any) -> None:
    fields = {**ASKED, "max_tokens": 30, "extra_body": {"seed": 5}}
    async with sdk.messages.stream(**fields) as stream:
        words = "".join([text async for text in stream.text_stream])
    whole = await sdk.messages.create(**fields)
    assert words == whole.content[0].text
