"""POST /v1/messages and /v1/messages/count_tokens over a scripted engine."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from typing import Any

import httpx
import msgspec
import pytest

from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import Output
from minisgl.server.message_events import SIGNATURE, MessageOutput
from minisgl.server.message_events import event as event_of
from minisgl.text.formats import AnswerFormats
from minisgl.text.parts import ArgumentsPart, CallPart, Part, ReasoningPart, TextPart
from minisgl.text.parts_reader import joined
from tests.python.server.conftest import MODEL, Server, StartServer
from tests.python.server.fake_engine import FakeClient, Script, endless, output, reply
from tests.python.server.test_disconnect import until
from tests.python.server.test_response_tools import ANSWER, CALL, FORMATS, TEMPLATE, in_turn
from tests.python.server.test_returning_answers import answering, contains

CLOCK = {
    "name": "clock",
    "description": "The time.",
    "input_schema": {"type": "object", "properties": {"zone": {"type": "string"}}},
}
USER = {"role": "user", "content": "hi"}


async def ask(
    server: Server, given: Any = "hi", path: str = "", headers: Any = None, **fields: Any
) -> httpx.Response:
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    body = {"model": MODEL, "max_tokens": 200, "messages": messages, **fields}
    return await server.http.post(f"/v1/messages{path}", json=body, headers=headers)


async def told(server: Server, given: Any = "hi", **fields: Any) -> Any:
    answer = await ask(server, given, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(body: str) -> list[dict[str, Any]]:
    """The events of a stream."""
    assert body.endswith("\n\n")
    found = []
    for text in body[:-2].split("\n\n"):
        name, data = text.split("\n")
        told = json.loads(data.removeprefix("data: "))
        assert name == f"event: {told['type']}"
        found.append(told)
    return found


def put_together(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that events tell of, whose order is checked."""
    assert [event["type"] for event in found[-2:]] == ["message_delta", "message_stop"]
    assert found[0]["type"] == "message_start"
    message: dict[str, Any] = found[0]["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    texts: list[str] = []
    is_open, pings = False, 0
    for event in found[1:-2]:
        kind = event["type"]
        if kind == "ping":
            pings += 1
        elif kind == "content_block_start":
            assert not is_open
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
            is_open, texts = True, []
        elif kind == "content_block_delta":
            assert is_open
            delta = event["delta"]
            block = message["content"][event["index"]]
            assert block is message["content"][-1]
            if delta["type"] == "signature_delta":
                block["signature"] = delta["signature"]
                continue
            assert block.get("signature", "") == ""  # which comes last
            name = {
                "text": "text_delta",
                "thinking": "thinking_delta",
                "tool_use": "input_json_delta",
            }[block["type"]]
            assert delta["type"] == name
            texts.append(delta.get("text") or delta.get("thinking") or delta["partial_json"])
        else:
            assert kind == "content_block_stop"
            block = message["content"][event["index"]]
            assert is_open
            assert block is message["content"][-1]
            is_open, text = False, "".join(texts)
            if block["type"] == "tool_use":
                assert block["input"] == {}
                block["input"] = json.loads(text)
            else:
                block[block["type"]] = text
    assert not is_open
    assert pings == bool(message["content"])
    end = found[-2]
    return {**message, **end["delta"], "usage": {**message["usage"], **end["usage"]}}


def prompt(server: Server) -> str:
    ids = server.engine.submitted[-1].request.prompt
    return bytes(token for token in ids if token < 256).decode()


async def test_answer(server: Server) -> None:
    answer = await ask(server)
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    num_prompt = len(server.engine.submitted[0].request.prompt)
    assert answer.json() == {
        "id": f"msg_{answer.headers['request-id']}",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "Hello", "citations": None}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": num_prompt,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 6,
        },
    }
    assert prompt(server) == "u:hi\na:"


async def test_events_in_their_order(server: Server) -> None:
    found = events((await ask(server, stream=True)).text)
    kinds = [event["type"] for event in found]
    assert kinds == [
        "message_start",
        "content_block_start",
        "ping",
        *["content_block_delta"] * kinds.count("content_block_delta"),
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert found[-2]["usage"]["output_tokens"] == 6


ENDS: list[tuple[Script, dict[str, Any], tuple[str, str | None]]] = [
    (reply("Hello"), {}, ("end_turn", None)),
    (reply(""), {}, ("end_turn", None)),
    (reply("Hello"), {"max_tokens": 3}, ("max_tokens", None)),
    (reply("Hello"), {"max_tokens": 0}, ("max_tokens", None)),
    (reply("Hello"), {"stop_sequences": ["xx", "lo"]}, ("stop_sequence", "lo")),
    (endless(delay=0), {"max_tokens": 10**6}, ("model_context_window_exceeded", None)),
    (reply(ANSWER), {"tools": [CLOCK]}, ("tool_use", None)),
    (reply(ANSWER[: ANSWER.index("UTC") + 1]), {"tools": [CLOCK]}, ("tool_use", None)),
    (reply(ANSWER + "\n" + CALL), {"tools": [CLOCK]}, ("tool_use", None)),
    (reply("<think>\nWhat"), {"max_tokens": 10}, ("max_tokens", None)),
    (reply(ANSWER), {}, ("end_turn", None)),  # without tools it is all text
]


@pytest.mark.parametrize(("script", "fields", "end"), ENDS)
async def test_a_stream_tells_what_the_whole_message_has(
    start_server: StartServer, script: Script, fields: dict[str, Any], end: tuple[str, str | None]
) -> None:
    async with start_server(
        script, formats=FORMATS, template=TEMPLATE, max_model_len=512
    ) as server:
        whole = await told(server, **fields)
        assert (whole["stop_reason"], whole["stop_sequence"]) == end
        found = events((await ask(server, **fields, stream=True)).text)
        try:
            streamed = put_together(found)
        except json.JSONDecodeError:  # the answer ends within a call
            assert whole["content"][-1]["input"] == {}
            return
        for message in (streamed, whole):  # each call has an id of its own
            assert message.pop("id").startswith("msg_")
            for block in message["content"]:
                assert block.pop("id", "call_").startswith("call_")
        assert streamed == whole


def test_blocks_however_the_parts_are_cut() -> None:
    dice = random.Random(0)
    for _ in range(200):
        whole = MessageOutput(shows_thoughts=True, keeps_blocks=True)
        parts: list[Part] = []
        for index in range(dice.randrange(6)):
            kind = dice.choice((TextPart, ReasoningPart, ArgumentsPart))
            if kind is ArgumentsPart:
                parts.append(CallPart(index, f"call_{index}", "f"))
                pieces = dice.choice((["{}"], ['{"a"', ": 1}"], ['{"b": "', "x", '"}']))
                parts += [ArgumentsPart(index, piece) for piece in pieces]
            else:
                parts += [kind("ab"), kind("\n\u00e9")]
        data = whole.add(parts) + whole.finish()
        cut = MessageOutput(shows_thoughts=True, keeps_blocks=False)
        again = b""
        while parts:
            size = dice.randrange(3)
            again += cut.add(parts[:size])
            parts = parts[size:]
        assert again + cut.finish() == data
        assert cut.blocks == []  # nobody reads them
        start = event_of("message_start", message={"content": [], "stop_reason": None, "usage": {}})
        end = event_of("message_delta", delta={}, usage={}) + event_of("message_stop")
        told = put_together(events((start + data + end).decode()))
        assert told["content"] == json.loads(msgspec.json.encode(whole.blocks))


async def test_a_thought_words_and_a_call(start_server: StartServer) -> None:
    async with start_server(
        in_turn(ANSWER, "Noon.", "Noon."), formats=FORMATS, template=TEMPLATE, max_model_len=2048
    ) as server:
        first = await told(server, tools=[CLOCK], thinking={"type": "adaptive"})
        thought, words, call = first["content"]
        assert thought == {"type": "thinking", "thinking": "I need it.", "signature": SIGNATURE}
        assert words == {"type": "text", "text": "Let me see.", "citations": None}
        assert (call["type"], call["name"], call["input"]) == ("tool_use", "clock", {"zone": "UTC"})
        usage = first["usage"]
        assert 0 < usage["output_tokens_details"]["thinking_tokens"] < usage["output_tokens"]
        given = {"type": "tool_result", "tool_use_id": call["id"]}
        conversation = [USER, {"role": "assistant", "content": first["content"]}]
        for content in ("12:00", [{"type": "text", "text": "12:00"}]):
            results = {"role": "user", "content": [{**given, "content": content}]}
            await told(server, [*conversation, results], tools=[CLOCK])
            asked = prompt(server)
            assert asked.startswith('clock;u:|hi\na:I need it.|Let me see.clock{"zone": "UTC"}')
            assert asked.endswith("\nt:|12:00\na:")


def test_many_parts_take_no_time_each_of_all_before_them() -> None:
    begun = time.process_time()
    assert joined([TextPart("x" * 500)] * 20_000) == [TextPart("x" * 500 * 20_000)]
    assert time.process_time() - begun < 0.5


async def test_a_whole_message_makes_no_events_for_each_token(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Part] = []
    add = MessageOutput.add

    def spy(output: MessageOutput, parts: Sequence[Part]) -> bytes:
        taken.extend(parts)
        return add(output, parts)

    monkeypatch.setattr(MessageOutput, "add", spy)
    async with start_server(
        reply(ANSWER, delay=0.001), formats=FORMATS, template=TEMPLATE, max_model_len=2048
    ) as server:
        await told(server, tools=[CLOCK], thinking={"type": "adaptive"})
    assert [type(part) for part in taken] == [ReasoningPart, TextPart, CallPart, ArgumentsPart]


async def test_thoughts_that_are_omitted(start_server: StartServer) -> None:
    async with start_server(
        reply(ANSWER), formats=FORMATS, template=TEMPLATE, max_model_len=512
    ) as server:
        thinking = {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}
        whole = await told(server, thinking=thinking)
        thought = {"type": "thinking", "thinking": "", "signature": SIGNATURE}
        assert whole["content"][0] == thought
        assert whole["content"][1]["text"].startswith("Let me see.")
        streamed = put_together(events((await ask(server, thinking=thinking, stream=True)).text))
        assert streamed["content"] == whole["content"]


async def test_the_answer_s_own_ids_come_back(start_server: StartServer) -> None:
    async with answering(start_server, "Hello there") as (server, ids):
        first = await told(server)
        again = [USER, {"role": "assistant", "content": first["content"]}, USER]
        await told(server, again)
        assert contains(server.engine.submitted[-1].request.prompt, ids)
        counted = await ask(server, again, path="/count_tokens")
        num_prompt = len(server.engine.submitted[-1].request.prompt)
        assert counted.json() == {"input_tokens": num_prompt}


async def test_cached_tokens_count_apart(start_server: StartServer) -> None:
    async def script(client: FakeClient, stream: TokenStream) -> None:
        made = output(stream, [ord("x")], "stop")
        made.num_cached = 4
        stream.deliver(made)

    async with start_server(script) as server:
        usage = (await told(server))["usage"]
        total = len(server.engine.submitted[0].request.prompt)
        assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (total - 4, 4)
        found = events((await ask(server, stream=True)).text)
        for event in (found[0]["message"], found[-2]):
            assert event["usage"]["cache_read_input_tokens"] == 4
            assert event["usage"]["input_tokens"] == total - 4


async def test_a_failure_is_the_last_event(start_server: StartServer) -> None:
    async def script(client: FakeClient, stream: TokenStream) -> None:
        stream.deliver(output(stream, [ord("x")]))
        await asyncio.sleep(0.05)
        stream.deliver(Output(stream.id, [], "error", error="secret", error_code="internal"))

    async with start_server(script) as server:
        answer = await ask(server, stream=True)
        last = events(answer.text)[-1]
        assert last["type"] == "error"
        assert last["error"]["type"] == "api_error"
        assert last["request_id"] == answer.headers["request-id"]
        assert "secret" not in answer.text
        refused = await ask(server)
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "api_error")


@pytest.mark.parametrize("stream", [False, True])
async def test_who_goes_ends_the_request(start_server: StartServer, stream: bool) -> None:
    async with start_server(endless(delay=0.01)) as server:
        asked = asyncio.create_task(ask(server, stream=stream))
        await until(lambda: server.engine.num_live == 1)
        asked.cancel()
        await until(lambda: server.engine.num_live == 0)
        await server.engine.settle()
        assert server.engine.aborted == [0]


def check_error(answer: httpx.Response, status: int, kind: str, words: str) -> None:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body == {
        "type": "error",
        "error": {"type": kind, "message": body["error"]["message"]},
        "request_id": answer.headers["request-id"],
    }
    assert words in body["error"]["message"]


@pytest.mark.parametrize("path", ["", "/count_tokens"])
async def test_keys_and_errors(start_server: StartServer, path: str) -> None:
    keys = {"api_key": ("first", "second"), "max_body_bytes": 1024}
    async with start_server(endless(), max_live=0, **keys) as server:
        for headers in (None, {"x-api-key": "third"}, {"authorization": "Bearer x"}):
            refused = await ask(server, path=path, headers=headers)
            check_error(refused, 401, "authentication_error", "x-api-key")
        key = {"x-api-key": "second", "anthropic-version": "2023-06-01", "anthropic-beta": "a,b"}
        for headers in (key, {"authorization": "Bearer first"}, {**key, "authorization": "None"}):
            answer = await ask(server, path=path + "?beta=true", headers=headers)
            if path:
                assert answer.json() == {"input_tokens": 9}
                continue
            check_error(answer, 429, "rate_limit_error", "queue is full")
            assert int(answer.headers["retry-after"])
        # No other route takes that header.
        assert (await server.http.get("/v1/models", headers=key)).status_code == 401
        refused = await ask(server, path=path, headers=key, model="claude")
        check_error(refused, 404, "not_found_error", "'claude'")
        refused = await ask(server, "x" * 1024, path=path, headers=key)
        check_error(refused, 413, "request_too_large", "1024 bytes")
        refused = await server.http.get(f"/v1/messages{path}")
        check_error(refused, 405, "invalid_request_error", "GET")
        refused = await server.http.post(f"/v1/messages{path}", content=b"{", headers=key)
        check_error(refused, 400, "invalid_request_error", "valid JSON")
        server.engine.state = "restarting"
        check_error(await ask(server, path=path, headers=key), 503, "overloaded_error", "restart")


@pytest.mark.parametrize("path", ["", "/count_tokens"])
async def test_while_the_model_loads(
    server: Server, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.engine.state = "starting"
    thinking = {"type": "enabled", "budget_tokens": 20}
    check_error(await ask(server, path=path, thinking=thinking), 503, "overloaded_error", "loading")
    assert "thinking.budget_tokens" not in caplog.text


async def test_a_prompt_that_is_too_long(server: Server) -> None:
    refused = await ask(server, "a" * 300)
    check_error(refused, 400, "invalid_request_error", "prompt is too long: ")
    assert "tokens > 256 maximum" in refused.json()["error"]["message"]
    counted = await ask(server, "a" * 300, path="/count_tokens")
    assert counted.json() == {"input_tokens": 307}


async def test_the_count_is_the_prompt_s(start_server: StartServer) -> None:
    conversation = [
        {"role": "user", "content": [{"type": "text", "text": "What time is it?"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "clock"}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]},
    ]
    async with start_server(formats=FORMATS, template=TEMPLATE, max_model_len=2048) as server:
        for fields in (
            {},
            {"tools": [CLOCK], "system": "Be kind."},
            {"tools": [CLOCK], "tool_choice": {"type": "none"}},
        ):
            counted = await told(server, conversation, path="/count_tokens", **fields)
            usage = (await told(server, conversation, **fields))["usage"]
            assert counted == {"input_tokens": usage["input_tokens"]}
        edits = {"edits": [{"type": "clear_tool_uses_20250919"}]}
        counted = await told(server, path="/count_tokens", context_management=edits)
        assert counted["context_management"]["original_input_tokens"] == counted["input_tokens"]


async def test_the_sdk_is_told_that_there_are_no_threads(server: Server) -> None:
    refused = await ask(server, thread={"type": "create"})
    assert refused.status_code == 400
    assert refused.json()["error"]["details"] == {"error_code": "thread_unsupported_request"}


async def test_a_prompt_may_be_computed_for_the_cache_alone(start_server: StartServer) -> None:
    """`max_tokens` 0: no answer, whatever else is asked for."""
    async with start_server(
        reply("Hello"), formats=FORMATS, template=TEMPLATE, max_model_len=2048
    ) as server:
        for fields in (
            {},
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            {"tools": [CLOCK]},
            {"stop_sequences": ["x"]},
        ):
            message = await told(server, max_tokens=0, **fields)
            assert (message["content"], message["stop_reason"]) == ([], "max_tokens")
            assert message["usage"]["output_tokens"] == 0
            assert server.engine.submitted[-1].request.params.max_tokens == 0


async def test_unknown_paths_have_its_errors(server: Server) -> None:
    for method, path in (("POST", "/v1/messages/batches"), ("GET", "/v1/messages/a/b/")):
        check_error(await server.http.request(method, path), 404, "not_found_error", path[:-1])
    other = await server.http.get("/v1/messagesx")
    assert other.json()["error"]["code"] == "unknown_url"


async def test_metrics_name_the_routes(server: Server) -> None:
    await ask(server)
    await ask(server, path="/count_tokens")
    shown = (await server.http.get("/metrics")).text.replace('method="POST",', "")
    assert 'route="/v1/messages",status="200"' in shown
    assert 'route="/v1/messages/count_tokens",status="200"' in shown


async def test_a_model_without_tools(start_server: StartServer) -> None:
    async with start_server(formats=AnswerFormats()) as server:
        refused = await ask(server, tools=[CLOCK])
        check_error(refused, 400, "invalid_request_error", "--tool-call-parser")
