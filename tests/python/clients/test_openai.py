"""The openai package: its own parsing and accumulating of what comes."""

from __future__ import annotations

import json
from typing import Any

import openai

from tests.python.clients.conftest import MODEL
from tests.python.clients.forms import Plan, Weather

MESSAGES: Any = [{"role": "user", "content": "Go on."}]
CHAT: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": 1000}
RESPONSE: Any = {"model": MODEL, "input": "Go on.", "max_output_tokens": 1000}


async def test_chat_parse(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(**CHAT, response_format=Plan, n=2, seed=1)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, Plan)
    # What was parsed goes back with the message.
    history = [*MESSAGES, answer.choices[0].message, *MESSAGES]
    await client.chat.completions.create(model=MODEL, messages=history, max_tokens=1)


async def test_chat_parses_calls(client: openai.AsyncOpenAI) -> None:
    tools = [openai.pydantic_function_tool(Weather, name="weather")]
    answer = await client.chat.completions.parse(
        **CHAT, tools=tools, tool_choice="required", parallel_tool_calls=False, seed=2
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)

    # The call and its result go back as the client has them.
    history = [
        *MESSAGES,
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": "Fair."},
    ]
    again = await client.chat.completions.create(
        model=MODEL, messages=history, tools=tools, max_tokens=5
    )
    assert again.usage is not None
    assert again.usage.prompt_tokens > 50


async def test_chat_streams(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(**CHAT, response_format=Plan, seed=3) as stream:
        async for event in stream:
            if event.type == "content.done":
                assert isinstance(event.parsed, Plan)
        assert isinstance((await stream.get_final_completion()).choices[0].message.parsed, Plan)
    tools = [openai.pydantic_function_tool(Weather, name="weather")]
    named: Any = {"type": "function", "function": {"name": "weather"}}
    pieces = ""
    async with client.chat.completions.stream(
        **CHAT, tools=tools, tool_choice=named, seed=4, stream_options={"include_usage": True}
    ) as stream:
        async for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                pieces += event.arguments_delta
            if event.type == "tool_calls.function.arguments.done":
                assert isinstance(event.parsed_arguments, Weather)
        final = await stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert call.function.arguments == pieces
    assert final.usage is not None


async def test_responses(client: openai.AsyncOpenAI) -> None:
    parsed = await client.responses.parse(**RESPONSE, text_format=Plan)
    assert isinstance(parsed.output_parsed, Plan)
    tool = openai.pydantic_function_tool(Weather, name="weather")["function"]
    tools: Any = [{"type": "function", **tool}]
    called = await client.responses.create(
        **RESPONSE, tools=tools, tool_choice="required", parallel_tool_calls=False
    )
    calls = [item for item in called.output if item.type == "function_call"]
    assert calls
    for call in calls:
        Weather.model_validate_json(call.arguments)
    results: Any = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "Fair."}
        for call in calls
    ]
    after = await client.responses.create(
        model=MODEL, input=results, previous_response_id=called.id, tools=tools, max_output_tokens=5
    )
    assert after.usage is not None
    assert after.usage.input_tokens > called.usage.input_tokens + 20  # type: ignore[union-attr]


async def test_responses_stream(client: openai.AsyncOpenAI) -> None:
    text = ""
    async with client.responses.stream(**RESPONSE, text_format=Plan) as stream:
        async for event in stream:
            if event.type == "response.output_text.delta":
                text += event.delta
        final = await stream.get_final_response()
    assert isinstance(final.output_parsed, Plan)
    assert text == final.output_text
    tools = [openai.pydantic_function_tool(Weather, name="weather")["function"]]
    arguments: dict[int, str] = {}
    async with client.responses.stream(
        **RESPONSE,
        tools=[{"type": "function", **tools[0]}],
        tool_choice="required",
        parallel_tool_calls=False,
    ) as stream:
        async for event in stream:
            if event.type == "response.function_call_arguments.delta":
                before = arguments.get(event.output_index, "")
                arguments[event.output_index] = before + event.delta
        final = await stream.get_final_response()
    calls = [item for item in final.output if item.type == "function_call"]
    assert [call.arguments for call in calls] == list(arguments.values())
    assert all(json.loads(one)["unit"] in "CF" for one in arguments.values())
