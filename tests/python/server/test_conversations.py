"""What the chat template gets of a conversation."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from tokenizers.processors import TemplateProcessing

from minisgl.server import checks
from minisgl.server.errors import ApiError
from minisgl.server.schemas import Message
from minisgl.text.frontend import TextFrontend
from minisgl.tokenizer import TemplateSource, Tokenizer
from tests.python.server.byte_tokenizer import END, make_backend
from tests.python.server.conftest import Server, StartServer

USER = {"role": "user", "content": "hi"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
VARIABLES = "{{ reasoning_effort }}|{{ verbosity }}|{{ enable_thinking }}|{{ documents }}|{{ x }}"


def plain(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return checks.plain_messages(msgspec.convert(list(messages), list[Message]))


@contextlib.asynccontextmanager
async def rendering(start_server: StartServer, template: str) -> AsyncIterator[Server]:
    """A server whose model has another template."""
    async with start_server() as server:
        source = TemplateSource({"default": template})
        tokenizer = Tokenizer(make_backend(), eos_token_ids=[END], chat_template=source)
        server.state.text = text = TextFrontend(tokenizer, [], None)
        yield server
        await text.close()


async def prompt_of(server: Server, body: dict[str, Any]) -> str:
    """The prompt, which the model and /tokenize get alike."""
    answer = await server.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    ids = server.engine.submitted[-1].request.prompt
    tokens = await server.http.post("/tokenize", json=body)
    assert tokens.json()["tokens"] == ids
    return bytes(token for token in ids if token < 256).decode()


def test_null_contents_stay_null() -> None:
    _, called, answered, empty = plain(
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": None, "tool_call_id": "1"},
        {"role": "assistant", "content": None},
    )
    assert called["content"] is answered["content"] is empty["content"] is None
    assert called["tool_calls"] == [CALL]


def test_a_history_of_functions() -> None:
    asked, answered = plain(
        {"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": 1}'}},
        {"role": "function", "name": "f", "content": "sun"},
    )
    assert asked["tool_calls"] == [
        {"type": "function", "id": "", "function": {"name": "f", "arguments": '{"a": 1}'}}
    ]
    assert answered == {"role": "function", "name": "f", "content": "sun"}


def test_calls_as_clients_write_them() -> None:
    (message,) = plain(
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"function": {"name": "f", "arguments": {"a": 1}}},
                {"function": {"name": "f"}},
                {"type": "custom", "custom": {"name": "g", "input": "text"}},
            ],
        }
    )
    functions = [call["function"] for call in message["tool_calls"]]
    assert [function["arguments"] for function in functions] == [{"a": 1}, {}, {"input": "text"}]


def test_parts_are_text() -> None:
    parts = [
        {"type": "text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}},
        "b",
        {"type": "input_text", "text": "c"},
        {"type": "refusal", "refusal": "d"},
    ]
    for role in ("user", "assistant", "tool", "system"):
        assert plain({"role": role, "content": parts})[0]["content"] == "a\nb\nc\nd"


def test_what_other_servers_answered_may_be_sent_back() -> None:
    (message,) = plain(
        {
            "role": "assistant",
            "content": None,
            "refusal": "No.",
            "annotations": [{"type": "url_citation"}],
            "audio": None,
            "function_call": None,
            "tool_calls": [],
            "reasoning": "because",
        }
    )
    assert message["content"] == "No."
    assert message["reasoning"] == message["reasoning_content"] == "because"
    assert "tool_calls" not in message


@pytest.mark.parametrize(
    ("message", "path"),
    [
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "assistant", "tool_calls": [{"type": "function"}]}, "messages[0].tool_calls"),
        ({"role": "developer", "content": "a", "tools": [{}]}, "messages[0].tools"),
    ],
)
def test_refused_by_name(message: dict[str, Any], path: str) -> None:
    with pytest.raises(ApiError) as refused:
        plain(message)
    assert (refused.value.status, refused.value.param) == (400, path)
    assert refused.value.code in ("invalid_value", "unsupported_parameter")


async def test_variables_of_the_template(start_server: StartServer) -> None:
    body: dict[str, Any] = {"messages": [USER], "chat_template_kwargs": {"x": 5}}
    async with rendering(start_server, VARIABLES) as server:
        assert await prompt_of(server, body) == "|||None|5"
        body |= {"reasoning_effort": "high", "verbosity": "low", "documents": [{"text": "a"}]}
        assert await prompt_of(server, body) == "high|low|True|[{'text': 'a'}]|5"
        body |= {"reasoning_effort": "none", "verbosity": None, "documents": None}
        assert await prompt_of(server, body) == "none||False|None|5"
        body |= {"chat_template_kwargs": {"enable_thinking": True}}
        assert await prompt_of(server, body) == "none||True|None|"


async def test_the_last_message_goes_on(server: Server) -> None:
    messages = [USER, {"role": "assistant", "content": "The capital is"}]
    body: dict[str, Any] = {"messages": messages, "continue_final_message": True}
    for more in ({}, {"add_generation_prompt": False}, {"add_generation_prompt": None}):
        assert await prompt_of(server, {**body, **more}) == "u:hi\na:The capital is"
    for path in ("/v1/chat/completions", "/tokenize"):
        answer = await server.http.post(path, json={**body, "add_generation_prompt": True})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "continue_final_message"
    body = {"messages": messages, "continue_final_message": False, "add_generation_prompt": False}
    assert await prompt_of(server, body) == "u:hi\na:The capital is\n"


async def test_special_tokens_beside_the_template_s(server: Server) -> None:
    assert server.state.text is not None
    server.state.text.tokenizer._backend.post_processor = TemplateProcessing(
        single="<end> $A", special_tokens=[("<end>", END)]
    )
    body: dict[str, Any] = {"messages": [USER]}
    plain_ids = (await server.http.post("/tokenize", json=body)).json()["tokens"]
    answer = await server.http.post("/tokenize", json={**body, "add_special_tokens": True})
    assert answer.json()["tokens"] == [END, *plain_ids]
