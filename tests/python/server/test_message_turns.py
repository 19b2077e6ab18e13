"""What a request of /v1/messages comes to: its conversation as the template's messages, its fields
as chat's, and what is refused.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import msgspec
import pytest

from minisgl.server import partial_json
from minisgl.server.decoding import IgnoredFields, decode
from minisgl.server.errors import ApiError
from minisgl.server.known_fields import MESSAGES_FIELDS
from minisgl.server.message_request import chat_request
from minisgl.server.message_schemas import Block, Turn
from minisgl.server.message_turns import messages_of
from minisgl.server.messages import CountTokens, Messages
from minisgl.server.partial_json import whole_part
from minisgl.server.schemas import ChatRequest
from minisgl.server.translation import MESSAGES
from minisgl.text.formats import AnswerFormats
from tests.python.server.conftest import Server, StartServer
from tests.python.server.fake_engine import reply
from tests.python.server.test_messages import CLOCK, FORMATS, TEMPLATE, USER, ask, told

TEXT = {"type": "text", "text": "one", "cache_control": {"type": "ephemeral"}}
CALL = {"type": "tool_use", "id": "a", "name": "clock", "input": {"zone": "UTC"}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "12:00"}


def read(
    messages: Any, *, strict: bool = True, limits_thoughts: bool = True, **fields: Any
) -> ChatRequest:
    body = json.dumps({"max_tokens": 10, "messages": messages, **fields}).encode()
    request = decode(Messages.decoder, body, IgnoredFields(), strict=strict)
    return chat_request(request, limits_thoughts=limits_thoughts)


def seen(messages: Any, **fields: Any) -> list[Any]:
    """The messages that templates get, without what they don't have."""
    found: list[Any] = given(msgspec.to_builtins(read(messages, **fields).messages))
    return found


def given(value: Any) -> Any:
    """What isn't null of a value."""
    if isinstance(value, dict):
        return {name: given(one) for name, one in value.items() if one is not None}
    return [given(one) for one in value] if isinstance(value, list) else value


def test_texts() -> None:
    assert seen([USER], system="Be kind.") == [{"role": "system", "content": "Be kind."}, USER]
    asked = [{"role": "user", "content": [TEXT, {"type": "text", "text": "two"}]}]
    assert seen(asked, system=[TEXT, TEXT]) == [
        {"role": "system", "content": "one\none"},
        {"role": "user", "content": "one\ntwo"},
    ]
    billing = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=1a;"}
    assert seen([USER], system=[billing]) == [USER]
    assert seen([USER], system=[billing, TEXT])[0]["content"] == "one"


def test_turns_of_one_role_are_one_message() -> None:
    said = {"role": "assistant", "content": [TEXT]}
    assert seen([USER, USER, said, said, USER]) == [
        {"role": "user", "content": "hi\nhi"},
        {"role": "assistant", "content": "oneone"},
        USER,
    ]
    told = {"role": "system", "content": "Now."}
    reminder = "<system-reminder>\nNow.\n</system-reminder>"
    assert seen([told, USER, told, USER, said, told], system="Be kind.") == [
        {"role": "system", "content": "Be kind.\nNow."},
        {"role": "user", "content": f"hi\n{reminder}\nhi"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": reminder},
    ]
    results = {"role": "user", "content": [RESULT]}
    assert seen([USER, results, told])[-1]["content"] == f"12:00\n{reminder}"


def test_many_blocks_take_no_time_each_of_all_before_them() -> None:
    count, size = 20_000, 500
    words = Turn(role="user", content=[Block(type="text", text="x" * size)])
    turns = [words] * count
    for block in (
        Block(type="text", text="x" * size),
        Block(type="thinking", thinking="x" * size),
        Block(type="tool_use", id="a", name="f"),
    ):
        turns.append(Turn(role="assistant", content=[block] * count))
    begun = time.process_time()
    asked, said = messages_of(None, turns)
    assert time.process_time() - begun < 2
    assert asked.content == "\n".join(["x" * size] * count)
    assert said.content == said.reasoning_content == "x" * size * count
    assert len(said.tool_calls or ()) == count


def test_calls_and_what_they_gave() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    hidden = {"type": "redacted_thinking", "data": "x"}
    second = {**CALL, "id": "b", "input": {}}
    failed = {**RESULT, "tool_use_id": "b", "is_error": True, "content": [TEXT, TEXT]}
    conversation = [
        USER,
        {"role": "assistant", "content": [hidden, thought, TEXT, CALL, second]},
        {"role": "user", "content": [TEXT, RESULT, failed, TEXT]},
    ]
    calls = [
        {
            "type": "function",
            "id": "a",
            "function": {"name": "clock", "arguments": {"zone": "UTC"}},
        },
        {"type": "function", "id": "b", "function": {"name": "clock", "arguments": {}}},
    ]
    assert seen(conversation) == [
        USER,
        {"role": "assistant", "content": "one", "reasoning_content": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "12:00"},
        {"role": "tool", "tool_call_id": "b", "content": "Error: one\none"},
        {"role": "user", "content": "one\none"},
    ]


def test_fields_as_chat_s() -> None:
    chat = read(
        [USER],
        tools=[{**CLOCK, "type": "custom", "strict": True, "eager_input_streaming": True}],
        tool_choice={"type": "tool", "name": "clock", "disable_parallel_tool_use": True},
        stop_sequences=["x"],
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        seed=7,
        metadata={"user_id": "someone"},
        output_config={"effort": "max"},
        max_tokens=10**9,
    )
    assert chat.tools is not None
    function = chat.tools[0].function
    assert function is not None
    assert (function.name, function.strict) == ("clock", True)
    assert function.parameters == CLOCK["input_schema"]
    assert chat.parallel_tool_calls is False
    assert msgspec.to_builtins(chat.tool_choice)["function"] == {"name": "clock"}
    assert (chat.stop, chat.temperature, chat.top_k, chat.top_p) == (["x"], 0.5, 3, 0.9)
    assert (chat.seed, chat.user, chat.max_tokens) == (7, "someone", 10**9)
    assert chat.reasoning_effort == "high"
    for given, choice in (("auto", "auto"), ("any", "required"), ("none", "none")):
        assert read([USER], tools=[CLOCK], tool_choice={"type": given}).tool_choice == choice


def test_thoughts_are_for_those_that_ask() -> None:
    for fields, thinks in (
        ({}, False),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "adaptive"}}, True),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
    ):
        variables = read([USER], **fields).chat_template_kwargs
        assert variables == {"enable_thinking": thinks, "thinking": thinks}
    own = read([USER], chat_template_kwargs={"enable_thinking": True, "x": 1})
    assert own.chat_template_kwargs == {"enable_thinking": True, "thinking": False, "x": 1}


def test_a_thought_has_its_budget() -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    for fields, budget in (
        ({"max_tokens": 1025}, 1024),
        ({"max_tokens": 1024}, None),  # no answer is longer
        ({"max_tokens": 1025, "limits_thoughts": False}, None),
    ):
        chat = read([USER], thinking=thinking, **fields)
        assert chat.thinking_token_budget == budget
    assert read([USER], thinking={"type": "adaptive"}).thinking_token_budget is None


async def test_the_budget_reaches_the_engine(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "minisgl.server.decoding")
    thinking = {"type": "enabled", "budget_tokens": 20}
    for formats, budget in ((FORMATS, 20), (AnswerFormats(), None)):
        async with start_server(reply("x"), formats=formats, template=TEMPLATE) as server:
            await told(server, thinking=thinking)
            assert server.engine.submitted[-1].request.params.thinking_token_budget == budget
        named = "".join(record.getMessage() for record in caplog.records)
        assert ("thinking.budget_tokens" in named) == (budget is None)


async def test_the_answer_goes_on_with_the_assistant_s_words(server: Server) -> None:
    begun = {"role": "assistant", "content": [{"type": "text", "text": "He said"}]}
    await told(server, [USER, begun])
    asked = server.engine.submitted[-1].request.prompt
    assert bytes(token for token in asked if token < 256) == b"u:hi\na:He said"


def test_the_form_of_an_answer() -> None:
    schema = {"type": "object"}
    form = {"type": "json_schema", "schema": schema}
    for fields in ({"output_config": {"format": form}}, {"output_format": form}):
        given = read([USER], **fields).response_format
        assert given is not None
        assert given.json_schema is not None
        assert given.json_schema.schema == schema


async def test_a_form_is_the_grammar_that_chat_has(server: Server) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    await told(server, output_config={"format": {"type": "json_schema", "schema": schema}})
    await server.chat(
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    )
    first, second = (stream.request.params.grammar for stream in server.engine.submitted)
    assert first is not None
    assert first == second


async def test_choices_are_enforced(start_server: StartServer) -> None:
    pytest.importorskip("llguidance")
    async with start_server(
        reply("x"), formats=FORMATS, template=TEMPLATE, max_model_len=2048
    ) as server:
        for choice, forced in (
            ({"type": "any"}, True),
            ({"type": "tool", "name": "clock"}, True),
            ({"type": "auto"}, False),
            ({"type": "none"}, False),
        ):
            await told(server, tools=[CLOCK], tool_choice=choice)
            grammar = server.engine.submitted[-1].request.params.grammar
            assert (grammar is not None) == forced


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x"}}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [USER, {"role": "assistant", "content": []}]}, "messages[1].content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "'image'"),
    ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "'document'"),
    ({"messages": [{"role": "user", "content": [CALL]}]}, "'tool_use'"),
    ({"messages": [{"role": "assistant", "content": [RESULT]}]}, "'tool_result'"),
    ({"messages": [{"role": "user", "content": [{**RESULT, "content": [IMAGE]}]}]}, "'image'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
        "messages[0].content[0].tool_use_id",
    ),
    ({"messages": [USER, {"role": "assistant", "content": [CALL]}]}, "'tool_result'"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "'text'"),
    ({"system": [IMAGE]}, "'image'"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
    ({"tool_choice": {"type": "any"}}, "'tool_choice'"),
    ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [CLOCK], "tool_choice": {"type": "tool", "name": "g"}}, "'g'"),
    ({"thinking": {"type": "between_tools"}}, "'between_tools'"),
    ({"output_format": {"type": "json_object"}}, "output_format"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"output_config": {"effort": "huge"}}, "output_config.effort"),
    ({"mcp_servers": [{"name": "x"}]}, "'mcp_servers'"),
    ({"container": "x"}, "'container'"),
    ({"stop": "x"}, "'stop_sequences'"),
    ({"n": 2}, "'n'"),
    ({"max_completion_tokens": 0}, "'max_completion_tokens'"),
    ({"prompt_logprobs": 0}, "'prompt_logprobs'"),
    ({"stream_options": {"include_usage": True}}, "'stream_options'"),
    ({"response_format": {"type": "json_object"}}, "'output_config.format'"),
    ({"stop_sequences": ["x" * 100_000]}, "stop_sequences"),
    ({"temperature": -1}, "temperature"),
    ({"seed": 2**64}, "'seed'"),
]


def test_values_that_ask_for_nothing() -> None:
    for fields in (
        {"stop": []},
        {"stop": ""},
        {"stream_options": {}},
        {"stop": [""]},
        {"stream_options": {"include_usage": False}},
        {"return_token_ids": False},
        {"n": 1, "best_of": 1, "prompt_logprobs": None},
    ):
        assert read([USER], **fields).messages == read([USER]).messages


async def test_refused_by_name(start_server: StartServer) -> None:
    async with start_server(formats=FORMATS, template=TEMPLATE) as server:
        for fields, words in REFUSED:
            refused = await ask(server, **fields)
            assert refused.status_code == 400, (fields, refused.text)
            assert refused.json()["error"]["type"] == "invalid_request_error"
            assert words in refused.json()["error"]["message"], fields
        assert server.engine.submitted == []


def test_errors_of_the_shared_checks_say_what_was_sent() -> None:
    for given, here in (
        ("response_format.json_schema.schema", "output_config.format.schema"),
        ("tools[1].function.name", "tools[1].name"),
        ("tools[1].function.parameters", "tools[1].input_schema"),
        ("tool_choice.function.name", "tool_choice.name"),
        ("stop", "stop_sequences"),
        ("messages[3].content", "messages"),
    ):
        error = MESSAGES.renamed(ApiError(400, f"'{given}' is bad", param=given))
        assert (error.param, error.message) == (here, f"'{here}' is bad")


@pytest.mark.parametrize("name", [name for name in MESSAGES_FIELDS if MESSAGES_FIELDS[name].advice])
def test_known_fields_that_change_the_answer(name: str) -> None:
    if name in Messages.decoder.type.__struct_fields__:
        return
    read([USER], **{name: None})
    with pytest.raises(ApiError, match=name):
        read([USER], strict=False, **{name: "surprise"})


def claude_code() -> dict[str, Any]:
    """A request as Claude Code writes them."""
    cached = {"type": "ephemeral", "ttl": "1h"}
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=00000;"},
        {"type": "text", "text": "You are Claude Code.", "cache_control": cached},
        {"type": "text", "text": "# Tools\nUse them.", "cache_control": cached},
    ]
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "todos": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {
                        "content": {"type": "string", "minLength": 1},
                        "status": {"type": "string", "enum": ["pending", "completed"]},
                    },
                    "required": ["content", "status"],
                    "additionalProperties": False,
                },
            },
            "answers": {"type": "object", "propertyNames": {"type": "string"}},
            "timeout": {"anyOf": [{"type": "number"}, {"type": "null"}], "default": 5},
        },
        "required": ["todos"],
        "additionalProperties": False,
    }
    reminder = {"type": "text", "text": "<system-reminder>\nBe brief.\n</system-reminder>"}
    return {
        "model": "alias",
        "messages": [
            {"role": "user", "content": [reminder, TEXT]},
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "Hm.", "signature": "x"}, CALL],
            },
            {"role": "user", "content": [{**RESULT, "is_error": False}, reminder]},
        ],
        "system": system,
        "tools": [
            {"name": "TodoWrite", "description": "To do.", "input_schema": schema},
            {**CLOCK, "cache_control": cached, "eager_input_streaming": True},
        ],
        "metadata": {"user_id": json.dumps({"device_id": "d" * 64, "session_id": "s"})},
        "max_tokens": 32000,
        "thinking": {"type": "enabled", "budget_tokens": 31999},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
        "temperature": 1,
    }


async def test_fields_without_effect_that_say_something_are_named(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "minisgl.server.decoding")
    tools = [{**CLOCK, "input_examples": [{"zone": "UTC"}], "defer_loading": False}]
    hidden = {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}
    await ask(server, [USER, hidden, USER], tools=tools, tool_choice={"type": "none"})
    named = "".join(record.getMessage() for record in caplog.records)
    assert "tools[].input_examples" in named
    assert "messages[].content[].data" in named
    assert "defer_loading" not in named


async def test_what_claude_code_sends(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "minisgl.server.decoding")
    async with start_server(
        reply("Hello"), formats=FORMATS, template=TEMPLATE, max_model_len=2048, strict_requests=True
    ) as server:
        body = claude_code()
        for stream in (False, True):
            answer = await server.http.post(
                "/v1/messages?beta=true",
                json={**body, "stream": stream},
                headers={
                    "anthropic-version": "2023-06-01",
                    "anthropic-beta": "claude-code-20250219",
                },
            )
            assert answer.status_code == 200, answer.text
        assert '"context_management":{"applied_edits":[]}' in answer.text
        ids = server.engine.submitted[-1].request.prompt
        asked = bytes(token for token in ids if token < 256).decode()
        assert asked.startswith("TodoWrite;clock;s:|You are Claude Code.\n# Tools\nUse them.\n")
        assert server.engine.submitted[-1].session == body["metadata"]["user_id"][:256]
        named = "".join(record.getMessage() for record in caplog.records)
        assert named.count("context_management.edits") == 1


def test_counting_needs_no_max_tokens() -> None:
    body = {"messages": [USER]}
    assert CountTokens.decoder.decode(json.dumps(body).encode()).messages
    body = {**body, "max_tokens": 5}
    decode(CountTokens.decoder, json.dumps(body).encode(), IgnoredFields(), strict=True)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ("", "{}"),
        ("[1]", "{}"),
        ('"a"', "{}"),
        ('{"a": 1} {"b": 2}', '{"a": 1}'),
        ('{"a"', "{}"),
        ('{"a": "x', "{}"),
        ('{"a": 12', "{}"),
        ('{"a": 12, "b', '{"a": 12}'),
        ('{"a": [1, "x, ]", {"b": tr', '{"a": [1, "x, ]", {}]}'),
        ('{"a": "\\"}", "b": {"c": "d', '{"a": "\\"}", "b": {}}'),
        ('{"a": 1]', "{}"),
        ("{a: 1}", "{}"),
        ('{"a":' * 2000, "{}"),
        ('{"a": [1, {"b": 2}}', '{"a": [1, {"b": 2}]}'),
    ],
)
def test_the_whole_part_of_an_input(text: str, whole: str) -> None:
    assert whole_part(text) == whole


def test_deep_nesting_takes_no_time_each_of_all_around_it() -> None:
    begun = time.process_time()
    assert whole_part('{"a":' + "[" * 20_000) == "{}"
    assert time.process_time() - begun < 0.5


def test_an_input_that_is_whole_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_json, "_closed", None)
    assert whole_part('{"a": 1}') == '{"a": 1}'
