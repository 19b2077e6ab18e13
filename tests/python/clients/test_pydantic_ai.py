"""pydantic-ai: outputs as calls of a tool, which it asks for by default, and as a form; tools."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.python.clients.conftest import MODEL
from tests.python.clients.forms import Plan, Weather

pydantic_ai = pytest.importorskip(
    "pydantic_ai", reason="pydantic-ai is not installed: extra 'clients'"
)


@pytest.fixture(params=["chat", "responses"])
def model(request: pytest.FixtureRequest, client: openai.AsyncOpenAI) -> Any:
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    kinds = {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}
    return kinds[request.param](MODEL, provider=OpenAIProvider(openai_client=client))


def agent(model: Any, output: Any) -> Any:
    return pydantic_ai.Agent(
        model,
        output_type=output,
        instructions="Act.",
        model_settings={"max_tokens": 1000, "parallel_tool_calls": False},
    )


async def test_an_output_by_a_tool(model: Any) -> None:
    result = await agent(model, Plan).run("Go on.")
    assert isinstance(result.output, Plan)


async def test_an_output_by_a_form(model: Any) -> None:
    result = await agent(model, pydantic_ai.NativeOutput(Plan)).run("Go on.")
    assert isinstance(result.output, Plan)


async def test_tools_until_there_is_an_output(model: Any) -> None:
    asked: list[Weather] = []
    caller = agent(model, Plan)

    @caller.tool_plain
    def weather(weather: Weather) -> str:
        """The weather of a place."""
        asked.append(weather)
        return "Fair."

    for _ in range(20):  # at random it is asked for one or the other
        result = await caller.run("Go on.")
        assert isinstance(result.output, Plan)
        if asked:
            return
    raise AssertionError("the tool was never called")


async def test_a_stream(model: Any) -> None:
    async with agent(model, Plan).run_stream("Go on.") as stream:
        async for _ in stream.stream_output(debounce_by=None):
            pass
        assert isinstance(await stream.get_output(), Plan)
