"""Calls of functions and thoughts over /v1/responses, as scripted answers have them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import InputTokenCountResponse

from minisgl.engine.stream import TokenStream
from minisgl.text.formats import AnswerFormats
from tests.python.server.conftest import MODEL, Server, StartServer, prompt
from tests.python.server.fake_engine import FakeClient, Script, reply
from tests.python.server.test_responses import events

FORMATS = AnswerFormats("hermes", "qwen3")
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}"
    "{% for message in messages %}{{ '<turn>' + message.role[0] + ':' }}"
    "{{ message.reasoning_content or '' }}|{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}"
    "{{ call.function.name }}{{ call.function.arguments }}"
    "{% endfor %}{{ '\n' }}{% endfor %}{{ '<turn>a:' }}"
)
CLOCK = {
    "type": "function",
    "name": "clock",
    "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
}
CALL = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'
ANSWER = "<think>\nI need it.\n</think>\n\nLet me see. " + CALL


def in_turn(*texts: str) -> Script:
    """A script that says one text per request."""
    scripts = iter([reply(text) for text in texts])

    async def script(client: FakeClient, stream: TokenStream) -> None:
        await next(scripts)(client, stream)

    return script


async def respond(server: Server, given: Any = "hi", **fields: Any) -> Any:
    answer = await server.http.post("/v1/responses", json={"input": given, **fields})
    assert answer.status_code == 200, answer.text
    return answer


async def test_a_call_or_a_form_behind_a_thought(start_server: StartServer) -> None:
    form = '{"a": 1}'
    text = {"format": {"type": "json_schema", "name": "f", "schema": {"type": "object"}}}
    answers = (f"<think>So.</think>\n{form}", CALL)
    for said in answers:
        async with start_server(
            reply(said), formats=FORMATS, template=TEMPLATE, max_model_len=2048
        ) as server:
            answer = (await respond(server, tools=[CLOCK], text=text)).json()
            streamed = events((await respond(server, tools=[CLOCK], text=text, stream=True)).text)
        kinds = [item["type"] for item in answer["output"]]
        assert [item["type"] for item in streamed[-1]["response"]["output"]] == kinds
        if said == CALL:
            assert kinds == ["function_call"]
        else:
            assert kinds == ["reasoning", "message"]
            assert answer["output"][1]["content"][0]["text"] == form


async def test_a_call_and_what_it_gave(start_server: StartServer) -> None:
    script = in_turn(ANSWER, "Noon.", "Noon.")
    async with start_server(
        script, formats=FORMATS, template=TEMPLATE, max_model_len=2048
    ) as server:
        answer = (await respond(server, tools=[CLOCK])).json()
        thought, words, call = answer["output"]
        assert thought["content"][0]["text"].strip() == "I need it."
        assert words["content"][0]["text"].strip() == "Let me see."
        assert (call["type"], call["name"]) == ("function_call", "clock")
        assert json.loads(call["arguments"]) == {"zone": "UTC"}
        assert answer["status"] == "completed"
        usage = answer["usage"]
        assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"]
        given = {"type": "function_call_output", "call_id": call["call_id"], "output": "12:00"}
        # The conversation goes on by its id, or with all items: the prompt is the same.
        await respond(server, [given], previous_response_id=answer["id"], tools=[CLOCK])
        by_id = prompt(server)
        asked = {"role": "user", "content": "hi"}
        await respond(server, [asked, *answer["output"], given], tools=[CLOCK])
        assert prompt(server) == by_id
        assert by_id.startswith("clock;u:|hi\na:I need it.")
        assert "t:|12:00\n" in by_id


async def test_events_of_a_call(start_server: StartServer) -> None:
    async with start_server(
        reply(ANSWER), formats=FORMATS, template=TEMPLATE, max_model_len=2048
    ) as server:
        found = events((await respond(server, tools=[CLOCK], stream=True)).text)
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert kinds[-1] == "completed"
    text = "".join(
        event["delta"] for event in found if event["type"].endswith("call_arguments.delta")
    )
    assert json.loads(text) == {"zone": "UTC"}
    assert kinds.count("output_item.done") == 3
    shown = "".join(event["delta"] for event in found if event["type"].endswith("text.delta"))
    assert "<" not in shown


async def test_openai_agents_call_functions(start_server: StartServer) -> None:
    agents = pytest.importorskip("agents", reason="openai-agents is not installed")
    agents.set_tracing_disabled(True)
    zones = []

    @agents.function_tool(strict_mode=False)
    def clock(zone: str) -> str:
        """The time in a zone."""
        zones.append(zone)
        return "12:00"

    script = in_turn(ANSWER, "It is noon.", ANSWER, "It is noon.")
    async with start_server(
        script, formats=FORMATS, template=TEMPLATE, max_model_len=2048
    ) as server:
        model = agents.OpenAIResponsesModel(model=MODEL, openai_client=server.openai())
        agent = agents.Agent(name="a", instructions="Be kind.", model=model, tools=[clock])
        result = await agents.Runner.run(agent, "What time is it?")
        assert (result.final_output, zones) == ("It is noon.", ["UTC"])
        assert "12:00" in prompt(server)
        streamed = agents.Runner.run_streamed(agent, "And now?")
        async for _ in streamed.stream_events():
            pass
        assert (streamed.final_output, zones) == ("It is noon.", ["UTC", "UTC"])


async def test_input_tokens_are_those_of_the_response(start_server: StartServer) -> None:
    async with (
        start_server(
            in_turn("Hi.", ANSWER, "Noon."), formats=FORMATS, template=TEMPLATE, max_model_len=2048
        ) as server,
        server.openai() as client,
    ):
        previous = None
        call = {"type": "function_call", "call_id": "c", "name": "clock", "arguments": "{}"}
        said = {"type": "function_call_output", "call_id": "c", "output": "noon"}
        asked: tuple[Any, ...] = ("hi", [{"role": "user", "content": "And now?"}], [call, said])
        for given in asked:
            fields: dict[str, Any] = {
                "model": MODEL,
                "input": given,
                "instructions": "Be kind.",
                "tools": [CLOCK],
                "reasoning": {"effort": "low"},
            }
            if previous is not None:
                fields["previous_response_id"] = previous
            counted = await client.responses.input_tokens.count(**fields)
            assert isinstance(counted, InputTokenCountResponse)
            assert counted.object == "response.input_tokens"
            answer = await client.responses.create(**fields)
            assert answer.usage is not None
            assert counted.input_tokens == answer.usage.input_tokens > 0
            previous = answer.id
        # What stands before an answer to nothing new.
        alone = await client.responses.input_tokens.count(previous_response_id=previous)
        assert alone.input_tokens > 0
        assert len(server.engine.submitted) == 3


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_x_0"}]}, 404, "input[0].id"),
        ({"previous_response_id": "resp_x"}, 404, "previous_response_id"),
        ({"input": "hi", "conversation": "conv_x"}, 400, "conversation"),
        ({"input": "hi", "personality": "friendly"}, 400, "personality"),
        ({"input": "hi", "max_completion_tokens": 3}, 400, "max_completion_tokens"),
    ],
)
async def test_input_tokens_of_what_is_refused(
    server: Server, fields: dict[str, Any], status: int, param: str
) -> None:
    answer = await server.http.post("/v1/responses/input_tokens", json=fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert not server.engine.submitted


async def test_prompts_longer_than_the_context_are_counted(server: Server) -> None:
    answer = await server.http.post("/v1/responses/input_tokens", json={"input": "a" * 300})
    assert answer.status_code == 200
    assert answer.json()["input_tokens"] > server.engine.max_model_len
