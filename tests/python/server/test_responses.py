"""POST /v1/responses over a scripted engine, also as the OpenAI SDK uses it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import msgspec
import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import Output
from minisgl.server.errors import bad_request
from minisgl.server.response_request import chat_request
from minisgl.server.response_schemas import ResponsesRequest
from minisgl.server.schemas import Message
from minisgl.server.translation import RESPONSES
from tests.python.server.conftest import MODEL, Server, StartServer
from tests.python.server.fake_engine import FakeClient, endless, output, reply
from tests.python.server.test_disconnect import until
from tests.python.server.test_returning_answers import answering, contains

_event: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)


async def respond(
    server: Server, given: Any = "hi", key: str = "", **fields: Any
) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"input": given, **fields}
    return await server.http.post("/v1/responses", json=body, headers=headers)


def events(body: str) -> list[dict[str, Any]]:
    """The events of a stream, each of which the SDK's types know."""
    found = []
    assert body.endswith("\n\n")
    for text in body[:-2].split("\n\n"):
        name, data = text.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        _event.validate_python(event)
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def prompt(server: Server) -> str:
    ids = server.engine.submitted[-1].request.prompt
    return bytes(token for token in ids if token < 256).decode()


async def test_answer(server: Server) -> None:
    answer = await respond(server, "hi", metadata={"a": "b"}, temperature=0.5)
    assert answer.status_code == 200, answer.text
    response = Response.model_validate(answer.json())
    assert (response.model, response.status, response.output_text) == (MODEL, "completed", "Hello")
    assert (response.metadata, response.temperature) == ({"a": "b"}, 0.5)
    assert prompt(server) == "u:hi\na:"
    assert response.usage
    num_prompt = len(server.engine.submitted[0].request.prompt)
    assert (response.usage.input_tokens, response.usage.output_tokens) == (num_prompt, 6)


async def test_events_in_their_order(server: Server) -> None:
    found = events((await respond(server, stream=True)).text)
    kinds = [event["type"].removeprefix("response.") for event in found]
    deltas = kinds.count("output_text.delta")
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * deltas,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    text = "".join(event["delta"] for event in found if event["type"].endswith("text.delta"))
    last = found[-1]["response"]
    assert text == "Hello" == last["output"][0]["content"][0]["text"]
    assert found[0]["response"]["output"] == []
    assert {event["item_id"] for event in found if "item_id" in event} == {last["output"][0]["id"]}


async def test_cut_answers_are_incomplete(server: Server) -> None:
    answer = (await respond(server, max_output_tokens=3)).json()
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["status"] == "incomplete"
    found = events((await respond(server, max_output_tokens=3, stream=True)).text)
    assert found[-1]["type"] == "response.incomplete"
    assert found[-1]["response"]["output"][0]["content"][0]["text"] == "Hel"


async def test_an_answer_without_words(start_server: StartServer) -> None:
    async with start_server(reply("")) as server:
        response = Response.model_validate((await respond(server)).json())
        assert (len(response.output), response.output_text) == (1, "")
        found = events((await respond(server, stream=True)).text)
        assert found[-1]["type"] == "response.completed"


async def test_log_probabilities(server: Server) -> None:
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = (await respond(server, **fields)).json()
    shown = answer["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in shown] == list("Hello")
    assert [len(entry["top_logprobs"]) for entry in shown] == [2] * 5
    found = events((await respond(server, **fields, stream=True)).text)
    deltas = [event["logprobs"] for event in found if event["type"].endswith("text.delta")]
    assert [entry for delta in deltas for entry in delta] == shown


async def test_a_failure_is_the_last_event(start_server: StartServer) -> None:
    async def script(client: FakeClient, stream: TokenStream) -> None:
        stream.deliver(output(stream, [ord("x")]))
        await asyncio.sleep(0.05)
        stream.deliver(Output(stream.id, [], "error", error="secret", error_code="internal"))

    async with start_server(script) as server:
        found = events((await respond(server, stream=True)).text)
        last = found[-1]
        assert last["type"] == "response.failed"
        assert last["response"]["error"]["code"] == "server_error"
        assert "secret" not in json.dumps(last)
        assert last["response"]["output"][0]["status"] == "incomplete"
        assert (await respond(server)).status_code == 503
        assert len(server.state.responses) == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_who_goes_ends_the_request(start_server: StartServer, stream: bool) -> None:
    async with start_server(endless(delay=0.01)) as server:
        asked = asyncio.create_task(respond(server, stream=stream))
        await until(lambda: server.engine.num_live == 1)
        asked.cancel()
        await until(lambda: server.engine.num_live == 0)
        await server.engine.settle()
        assert server.engine.aborted == [0]
        assert len(server.state.responses) == 0


async def test_conversation_by_id(server: Server) -> None:
    first = (await respond(server, "one", instructions="Be kind.")).json()
    assert prompt(server) == "s:Be kind.\nu:one\na:"
    second = (await respond(server, "two", previous_response_id=first["id"])).json()
    assert prompt(server) == "u:one\na:Hello\nu:two\na:"
    third = await respond(server, "three", previous_response_id=second["id"], stream=True)
    assert prompt(server) == "u:one\na:Hello\nu:two\na:Hello\nu:three\na:"
    # The next may go on with it as soon as the last event is there.
    third_id = events(third.text)[-1]["response"]["id"]
    await respond(server, "four", previous_response_id=third_id)
    assert prompt(server).endswith("u:three\na:Hello\nu:four\na:")
    # A conversation goes on from each of its turns.
    await respond(server, "other", previous_response_id=first["id"])
    assert prompt(server) == "u:one\na:Hello\nu:other\na:"


async def test_the_answer_s_own_ids_come_back(start_server: StartServer) -> None:
    async with answering(start_server, "Hello there") as (server, ids):
        first = (await respond(server)).json()
        await respond(server, "go on", previous_response_id=first["id"])
        assert contains(server.engine.submitted[-1].request.prompt, ids)
        # And those of an answer that the client sends back.
        await respond(server, [{"role": "user", "content": "hi"}, *first["output"]])
        assert contains(server.engine.submitted[-1].request.prompt, ids)


async def test_what_isn_t_stored(server: Server) -> None:
    answer = (await respond(server, store=False)).json()
    assert answer["store"] is False
    for refused in (
        await respond(server, previous_response_id=answer["id"]),
        await server.http.get(f"/v1/responses/{answer['id']}"),
        await server.http.delete(f"/v1/responses/{answer['id']}"),
        await server.http.get(f"/v1/responses/{answer['id']}/input_items"),
    ):
        assert refused.status_code == 404
        message = refused.json()["error"]["message"]
        assert "restarted" in message
        assert "--response-store-bytes" in message


async def test_a_server_that_keeps_none(start_server: StartServer) -> None:
    async with start_server(response_store_bytes=0) as server:
        answer = (await respond(server)).json()
        refused = await respond(server, previous_response_id=answer["id"])
        assert refused.status_code == 404
        assert "keeps none" in refused.json()["error"]["message"]


async def test_another_key_s_responses_are_nobody_s(start_server: StartServer) -> None:
    async with start_server(api_key=("one", "two")) as server:
        answer = (await respond(server, key="one")).json()
        path = f"/v1/responses/{answer['id']}"
        reference = [{"type": "item_reference", "id": answer["output"][0]["id"]}]
        for key, status in (("one", 200), ("two", 404), ("three", 401)):
            headers = {"authorization": f"Bearer {key}"}
            assert (await server.http.get(path, headers=headers)).status_code == status
            items = await server.http.get(f"{path}/input_items", headers=headers)
            assert items.status_code == status
            again = await respond(server, key=key, previous_response_id=answer["id"])
            assert again.status_code == status
            assert (await respond(server, reference, key=key)).status_code == status
        headers = {"authorization": "Bearer two"}
        assert (await server.http.delete(path, headers=headers)).status_code == 404
        headers = {"authorization": "Bearer one"}
        assert (await server.http.delete(path, headers=headers)).status_code == 200
        assert (await server.http.get(path, headers=headers)).status_code == 404


async def test_a_conversation_outlives_what_is_deleted(server: Server) -> None:
    first = (await respond(server, "one")).json()
    second = (await respond(server, "two", previous_response_id=first["id"])).json()
    await server.http.delete(f"/v1/responses/{first['id']}")
    await respond(server, "three", previous_response_id=second["id"])
    assert prompt(server) == "u:one\na:Hello\nu:two\na:Hello\nu:three\na:"


async def test_input_items(server: Server) -> None:
    first = (await respond(server, "one")).json()
    given = [{"role": "user", "content": [{"type": "input_text", "text": "two"}]}]
    second = (await respond(server, given, previous_response_id=first["id"])).json()
    path = f"/v1/responses/{second['id']}/input_items"
    whole = (await server.http.get(path, params={"order": "asc"})).json()
    texts = [item["content"][0]["text"] for item in whole["data"]]
    assert texts == ["one", "Hello", "two"]
    assert whole["has_more"] is False
    page = (await server.http.get(path, params={"limit": 2})).json()
    assert page["data"] == whole["data"][:0:-1]
    assert (page["has_more"], page["last_id"]) == (True, whole["data"][1]["id"])
    rest = (await server.http.get(path, params={"after": page["last_id"]})).json()
    assert (rest["data"], rest["has_more"]) == (whole["data"][:1], False)
    for params in ({"limit": 0}, {"limit": 101}, {"limit": "x"}, {"order": "up"}, {"after": "y"}):
        refused = await server.http.get(path, params=params)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, next(iter(params)))


async def test_items_by_reference(server: Server) -> None:
    first = (await respond(server, "one")).json()
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    answer = await respond(server, [{"role": "user", "content": "a"}, reference])
    assert answer.status_code == 200, answer.text
    assert prompt(server).startswith("u:a\na:Hello\n")
    for item_id in ("msg_x_0", f"msg_{first['id'].removeprefix('resp_')}_7", "x"):
        refused = await respond(server, [{"type": "item_reference", "id": item_id}])
        assert (refused.status_code, refused.json()["error"]["param"]) == (404, "input[0].id")


async def test_what_is_referred_to_has_the_limits_of_a_body(start_server: StartServer) -> None:
    async with start_server(max_body_bytes=8192, max_model_len=65536) as server:
        first = (await respond(server, "a" * 5000)).json()
        # However often an item is named, its response is read once.
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        assert (await respond(server, [reference] * 50)).status_code == 200
        again = await respond(server, "b" * 5000, previous_response_id=first["id"])
        assert again.status_code == 200
        for fields in (
            {"previous_response_id": again.json()["id"]},
            {"previous_response_id": first["id"], "given": [reference]},
        ):
            refused = await respond(server, **fields)
            assert refused.status_code == 400
            assert "--max-body-bytes" in refused.json()["error"]["message"]
        assert server.state.bodies.used == 0


async def test_what_is_referred_to_counts_as_a_body(start_server: StartServer) -> None:
    async with start_server(max_body_bytes=8192, max_all_bodies_bytes=8192) as server:
        first = (await respond(server, "a")).json()
        held = server.state.bodies.hold(7500)
        refused = await respond(server, "b", previous_response_id=first["id"])
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        held.release()
        assert (await respond(server, "b", previous_response_id=first["id"])).status_code == 200
        assert server.state.bodies.used == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"n": 2}, "n"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "mcp", "server_label": "x", "server_url": "y"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        (
            {"tool_choice": {"type": "allowed_tools", "tools": [{"type": "mcp"}]}},
            "tool_choice.tools[0]",
        ),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"include": ["everything"]}, "include[0]"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
        ({"input": []}, "input"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": "a" * 400}, "input"),
    ],
)
async def test_refused_by_name(server: Server, fields: dict[str, Any], param: str) -> None:
    refused = await server.http.post("/v1/responses", json={"input": "hi", **fields})
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == param
    assert server.engine.submitted == []


async def test_what_means_nothing_is_accepted(server: Server) -> None:
    answer = await respond(
        server,
        background=False,
        conversation=None,
        truncation="disabled",
        include=["reasoning.encrypted_content"],
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": {"type": "text"}},
        tools=[],
        tool_choice="none",
        parallel_tool_calls=True,
        max_tool_calls=3,
        prompt_cache_key="x",
        safety_identifier="y",
        service_tier="auto",
        user="z",
        stream_options={"include_obfuscation": False},
        n=1,
        best_of=1,
        stop="",
        return_token_ids=False,
    )
    assert answer.status_code == 200, answer.text


async def test_metrics_name_the_route(server: Server) -> None:
    answer = (await respond(server)).json()
    await server.http.get(f"/v1/responses/{answer['id']}")
    shown = (await server.http.get("/metrics")).text
    assert 'route="/v1/responses",status="200"' in shown.replace('method="POST",', "")
    assert 'route="/v1/responses/{id}"' in shown
    assert answer["id"] not in shown


async def test_the_sdk(server: Server) -> None:
    async with server.openai() as client:
        made = await client.responses.create(model=MODEL, input="hi")
        assert made.output_text == "Hello"
        assert await client.responses.retrieve(made.id) == made
        kinds = []
        async with client.responses.stream(
            model=MODEL, input="again", previous_response_id=made.id
        ) as stream:
            async for event in stream:
                kinds.append(event.type)
            final = await stream.get_final_response()
        assert final.output_text == "Hello"
        assert kinds[-1] == "response.completed"
        items = [item async for item in client.responses.input_items.list(final.id, limit=1)]
        assert len(items) == 3
        await client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)


@pytest.mark.parametrize(
    ("theirs", "here"),
    [
        ("messages[3].content[0].text", "input"),
        ("response_format", "text.format"),
        ("response_format.json_schema.schema", "text.format.schema"),
        ("max_completion_tokens", "max_output_tokens"),
        ("tools[2].function.parameters", "tools[2].parameters"),
        ("tool_choice.allowed_tools.tools[1]", "tool_choice.tools[1]"),
        ("tool_choice.function.name", "tool_choice.name"),
        ("logprobs", "include"),
        ("top_logprobs", "top_logprobs"),
        ("min_tokens", "min_tokens"),
        (None, None),
    ],
)
def test_faults_that_chat_finds_have_the_names_of_this_api(
    theirs: str | None, here: str | None
) -> None:
    error = RESPONSES.renamed(bad_request(f"'{theirs}' is wrong.", param=theirs))
    assert (error.param, error.message) == (here, f"'{here}' is wrong.")


def test_what_chat_is_asked() -> None:
    body = {
        "input": "hi",
        "max_output_tokens": 7,
        "temperature": 0.5,
        "top_k": 3,
        "reasoning": {"effort": "low"},
        "text": {
            "format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}},
            "verbosity": "high",
        },
        "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": False}],
        "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": False,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    request = msgspec.convert(body, ResponsesRequest)
    chat = chat_request(request, [Message(role="user", content="hi")])
    asked = msgspec.to_builtins(chat)
    given = {name: value for name, value in asked.items() if value is not None}
    expected = {
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_k": 3,
        "reasoning_effort": "low",
        "verbosity": "high",
        "parallel_tool_calls": False,
        "logprobs": True,
        "top_logprobs": 2,
    }
    assert {name: given[name] for name in expected} == expected
    form, tool, choice = given["response_format"], given["tools"][0], given["tool_choice"]
    assert (form["type"], form["json_schema"]["schema"]) == ("json_schema", {"type": "object"})
    assert (tool["function"]["name"], tool["function"]["strict"]) == ("f", False)
    assert (choice["type"], choice["function"]["name"]) == ("function", "f")
