"""openai-agents as a client: it asks through /v1/responses by default."""

from __future__ import annotations

from typing import Any

import pytest

from tests.python.server.conftest import MODEL, Server, StartServer, prompt
from tests.python.server.fake_engine import reply

agents = pytest.importorskip("agents", reason="openai-agents is not installed: extra 'clients'")


@pytest.fixture(autouse=True)
def untraced() -> None:
    """Nothing is reported to anybody."""
    agents.set_tracing_disabled(True)


def agent(server: Server, **fields: Any) -> Any:
    client = server.openai()
    model = agents.OpenAIResponsesModel(model=MODEL, openai_client=client)
    return agents.Agent(name="test", instructions="Be kind.", model=model, **fields)


async def test_a_conversation(start_server: StartServer) -> None:
    async with start_server(reply("Hello")) as server:
        asked = agent(server)
        first = await agents.Runner.run(asked, "one")
        assert first.final_output == "Hello"
        assert first.context_wrapper.usage.output_tokens == 6
        # The items that came go back, as the agents have them,
        again = [*first.to_input_list(), {"role": "user", "content": "two"}]
        assert (await agents.Runner.run(asked, again)).final_output == "Hello"
        assert prompt(server) == "s:Be kind.\nu:one\na:Hello\nu:two\na:"
        # or the server has them.
        last = first.last_response_id
        await agents.Runner.run(asked, "three", previous_response_id=last)
        assert prompt(server) == "s:Be kind.\nu:one\na:Hello\nu:three\na:"


async def test_a_stream(start_server: StartServer) -> None:
    async with start_server(reply("Hello")) as server:
        result = agents.Runner.run_streamed(agent(server), "one")
        words = ""
        async for event in result.stream_events():
            if event.type == "raw_response_event":
                words += getattr(event.data, "delta", "")
        assert words == result.final_output == "Hello"
