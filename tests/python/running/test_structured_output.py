"""Forms of answers over a running server with random weights: what ends with "stop" is valid."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from decimal import Decimal
from typing import Any

import openai
import pytest

from tests.python.running.conftest import RunningServer, StartServer
from tests.python.text.random_schemas import fault, random_schema

NUM_SCHEMAS = 60
MAX_TOKENS = 3000  # bytes, of which all answers to these schemas have fewer

MESSAGES: Any = [{"role": "user", "content": "Answer in JSON."}]


@pytest.fixture
async def client(server: RunningServer) -> Any:
    url = f"http://127.0.0.1:{server.port}/v1"
    async with openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0) as client:
        yield client


async def test_every_answer_to_a_random_schema_that_stops_is_valid(client: Any) -> None:
    model = (await client.models.list()).data[0].id

    async def ask(seed: int) -> list[str]:
        schema = random_schema(seed)
        form = {"name": "random", "schema": schema, "strict": True}
        answer = await client.chat.completions.create(
            model=model,
            messages=MESSAGES,
            response_format={"type": "json_schema", "json_schema": form},
            temperature=1,
            seed=seed,
            n=1 + seed % 2,
            max_tokens=MAX_TOKENS,
        )
        for choice in answer.choices:
            if choice.finish_reason == "stop":
                value = json.loads(choice.message.content, parse_float=Decimal)
                assert not fault(value, schema), (seed, choice.message.content)
        return [choice.finish_reason for choice in answer.choices]

    ends = Counter(
        end for ends in await asyncio.gather(*map(ask, range(NUM_SCHEMAS))) for end in ends
    )
    assert ends["stop"] >= 0.95 * ends.total(), ends


async def test_streams_and_completions(client: Any) -> None:
    model = (await client.models.list()).data[0].id
    stream = await client.completions.create(
        model=model,
        prompt=["a", "b"],
        n=2,
        stream=True,
        max_tokens=100,
        extra_body={"structured_outputs": {"regex": "[a-f]{3}(-[0-9]{2}){2}"}},
    )
    texts: dict[int, str] = {}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            assert choice.finish_reason in (None, "stop")
    assert len(texts) == 4
    assert all(re.fullmatch("[a-f]{3}(-[0-9]{2}){2}", text) for text in texts.values()), texts
    answer = await client.chat.completions.create(
        model=model, messages=MESSAGES, n=5, extra_body={"guided_choice": ["yes", "no"]}
    )
    assert {choice.message.content for choice in answer.choices} <= {"yes", "no"}
    cut = await client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=5, response_format={"type": "json_object"}
    )
    assert cut.choices[0].message.content.startswith("{")


async def test_every_call_that_is_made_is_valid(client: Any) -> None:
    model = (await client.models.list()).data[0].id
    form = {"name": "random", "schema": random_schema(0), "strict": True}
    beside: Any = {"response_format": {"type": "json_schema", "json_schema": form}}

    async def ask(seed: int, **fields: Any) -> Any:
        schema = random_schema(seed, 1)
        function = {"name": "f", "parameters": schema, "strict": True}
        answer = await client.chat.completions.create(
            model=model,
            messages=MESSAGES,
            tools=[{"type": "function", "function": function}],
            parallel_tool_calls=False,
            temperature=1,
            seed=seed,
            max_tokens=MAX_TOKENS,
            **fields,
        )
        choice = answer.choices[0]
        if choice.finish_reason == "tool_calls":
            (call,) = choice.message.tool_calls
            value = json.loads(call.function.arguments, parse_float=Decimal)
            assert not fault(value, schema), (seed, call)
        elif choice.finish_reason == "stop":
            value = json.loads(choice.message.content, parse_float=Decimal)
            assert not fault(value, form["schema"]), (seed, choice.message.content)
        return choice.finish_reason

    forced = Counter(await asyncio.gather(*(ask(i, tool_choice="required") for i in range(12))))
    assert set(forced) <= {"tool_calls", "length"}
    assert forced["tool_calls"] >= 11, forced
    either = Counter(await asyncio.gather(*(ask(i, **beside) for i in range(12))))
    assert either["tool_calls"] + either["stop"] >= 11, either
    assert either["tool_calls"], either
    assert either["stop"], either


@pytest.fixture(scope="module")
def thinking(start_server: StartServer) -> RunningServer:
    """A server whose model may think, and writes arguments between tags."""
    return start_server("--tool-call-parser", "qwen3_coder", "--reasoning-parser", "think")


@pytest.mark.parametrize("called", [False, True])
async def test_a_thought_is_closed_and_what_follows_is_valid(
    thinking: RunningServer, called: bool
) -> None:
    schema = random_schema(2, 1, ("id", "name", "kind", "tags"))
    form = {"name": "random", "schema": schema, "strict": True}
    function = {"name": "f", "parameters": schema}
    fields: Any = {"response_format": {"type": "json_schema", "json_schema": form}}
    if called:
        fields = {
            "tools": [{"type": "function", "function": function}],
            "tool_choice": "required",
            "parallel_tool_calls": False,
        }
    url = f"http://127.0.0.1:{thinking.port}/v1"
    async with openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0) as client:
        model = (await client.models.list()).data[0].id
        answer = await client.chat.completions.create(
            model=model,
            messages=MESSAGES,
            temperature=1,
            seed=1,
            n=16,
            max_tokens=MAX_TOKENS,
            extra_body={"thinking_token_budget": 8},
            **fields,
        )
    ends = Counter(choice.finish_reason for choice in answer.choices)
    assert ends["tool_calls" if called else "stop"] >= 15, ends
    thoughts = 0
    for choice in answer.choices:
        if choice.finish_reason == "length":
            continue
        thoughts += bool(choice.message.model_extra.get("reasoning"))
        text = choice.message.content
        if called:
            assert not text
            text = choice.message.tool_calls[0].function.arguments
        assert not fault(json.loads(text, parse_float=Decimal), schema), choice
    assert 0 < thoughts < 16
