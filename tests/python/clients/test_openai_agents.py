"""openai-agents: the loop of an agent over /v1/responses and over chat completions."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.python.clients.conftest import MODEL
from tests.python.clients.forms import Plan, Weather

agents = pytest.importorskip("agents", reason="openai-agents is not installed: extra 'clients'")


@pytest.fixture(autouse=True)
def untraced() -> None:
    """Nothing is reported to anybody."""
    agents.set_tracing_disabled(True)


@pytest.fixture(params=["responses", "chat"])
def model(request: pytest.FixtureRequest, client: openai.AsyncOpenAI) -> Any:
    kinds = {
        "responses": agents.OpenAIResponsesModel,
        "chat": agents.OpenAIChatCompletionsModel,
    }
    return kinds[request.param](model=MODEL, openai_client=client)


def agent(model: Any, *, tool_choice: str | None = None, **fields: Any) -> Any:
    settings = agents.ModelSettings(
        max_tokens=8000,
        tool_choice=tool_choice,
        parallel_tool_calls=False if fields.get("tools") else None,
    )
    return agents.Agent(
        name="t", instructions="Act.", model=model, model_settings=settings, **fields
    )


async def test_tools(model: Any) -> None:
    asked: list[Weather] = []

    @agents.function_tool
    def weather(weather: Weather) -> str:
        """The weather of a place."""
        asked.append(weather)
        return "Fair."

    # The first turn must call, what follows is any text.
    result = await agents.Runner.run(
        agent(model, tool_choice="required", tools=[weather]), "Go on.", max_turns=3
    )
    assert asked
    kinds = [item.type for item in result.new_items]
    assert kinds.count("tool_call_item") == kinds.count("tool_call_output_item") == len(asked)
    assert isinstance(result.final_output, str)


async def test_a_form(model: Any) -> None:
    result = await agents.Runner.run(agent(model, output_type=Plan), "Go on.")
    assert isinstance(result.final_output, Plan)


async def test_tools_until_there_is_a_form(model: Any) -> None:
    asked: list[Weather] = []

    @agents.function_tool
    def weather(weather: Weather) -> str:
        """The weather of a place."""
        asked.append(weather)
        return "Fair."

    # After the first turn, which must call, each is a call or the form.
    forced = agent(model, tool_choice="required", tools=[weather], output_type=Plan)
    result = await agents.Runner.run(forced, "Go on.", max_turns=40)
    assert asked
    assert isinstance(result.final_output, Plan)


async def test_a_stream(model: Any) -> None:
    result = agents.Runner.run_streamed(agent(model, output_type=Plan), "Go on.")
    text = ""
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            text += event.data.delta
    assert Plan.model_validate_json(text) == result.final_output
