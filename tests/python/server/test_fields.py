"""Fields that the schemas don't have: neutral values pass, those that would change the answer are
refused by name, others are ignored and named once.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import msgspec
import pytest

from minisgl.server import checks
from minisgl.server.chat import ChatCompletions
from minisgl.server.completions import Completions
from minisgl.server.decoding import MAX_NAMED, MAX_SEARCHED_BYTES, IgnoredFields, decode
from minisgl.server.errors import ApiError
from minisgl.server.known_fields import KNOWN_FIELDS
from minisgl.server.schemas import ChatRequest, CompletionRequest
from minisgl.server.tokens import Detokenize, Tokenize
from tests.python.server.conftest import Server, StartServer

USER = {"role": "user", "content": "hi"}


def read(fields: dict[str, Any], *, strict: bool = False) -> ChatRequest:
    body = json.dumps({"messages": [USER], **fields}).encode()
    return decode(ChatCompletions.decoder, body, IgnoredFields(), strict=strict)


@pytest.fixture
def named(caplog: pytest.LogCaptureFixture) -> Any:
    """What the log has said is ignored."""

    def names() -> str:
        return "\n".join(record.getMessage() for record in caplog.records)

    caplog.set_level(logging.WARNING, "minisgl.server.decoding")
    return names


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n": 1000}, "<= 128, got 1000."),
        ({"temperature": "100.5"}, '<= 100.0, got "100.5".'),
        ({"top_k": -(10**80)}, f"got -1{'0' * 75}...."),
        ({"seed": 2**70}, f"got {2**70}."),
        ({"stop": ["a"] * 65}, "of length <= 64, got 65."),
        ({"stop": "a" * 1025}, "of length <= 1024, got 1025."),
        ({"tools": [{"function": {"name": ""}}]}, "of length >= 1, got 0."),
        ({"logit_bias": {str(number): 1 for number in range(1025)}}, "<= 1024, got 1025."),
        ({"truncation_side": "up"}, "'up': it must be 'left' or 'right'."),
        ({"truncation_side": "u" * 10**6}, f"'{'u' * 76}...: it must be 'left' or 'right'."),
        # A long body isn't read a second time.
        ({"n": 1000, "a_field_that_is_ignored": "a" * 2**17}, "<= 128."),
        ({"a_field_that_is_ignored": 1, "n": 1000}, "<= 128, got 1000."),
        # The decoder doesn't tell which key it was.
        ({"logit_bias": {"5": 101}}, "<= 100.0."),
    ],
)
def test_what_is_out_of_range_is_told_with_what_it_is(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError) as refused:
        checks.check_chat(read(fields))
    assert refused.value.message.endswith(words)
    assert refused.value.param is not None


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", KNOWN_FIELDS)
def test_null_and_neutral_values_pass(name: str, strict: bool, named: Any) -> None:
    for value in (None, *KNOWN_FIELDS[name].neutral):
        read({name: value}, strict=strict)
        body = json.dumps({"prompt": "a", name: value}).encode()
        decode(Completions.decoder, body, IgnoredFields(), strict=strict)
    assert not named()


@pytest.mark.parametrize("name", [name for name in KNOWN_FIELDS if KNOWN_FIELDS[name].advice])
def test_what_would_change_the_answer_is_refused(name: str) -> None:
    body = json.dumps({"messages": [USER], "prompt": "a", name: "surprise"}).encode()
    endpoint = Completions if name in ChatRequest.__struct_fields__ else ChatCompletions
    with pytest.raises(ApiError) as refused:
        decode(endpoint.decoder, body, IgnoredFields())
    assert (refused.value.status, refused.value.param) == (400, name)
    assert refused.value.code == "unsupported_parameter"
    assert name in refused.value.message


def test_neutral_values_as_clients_write_them() -> None:
    read({"length_penalty": 1, "use_beam_search": 0, "session_id": 0.0, "include_reasoning": 1})
    for name, value in (("length_penalty", 1.5), ("use_beam_search", 1), ("modalities", ["audio"])):
        with pytest.raises(ApiError):
            read({name: value})


@pytest.mark.parametrize("schema", [ChatRequest, CompletionRequest])
def test_a_schema_leaves_nothing_to_the_table_that_it_has(schema: type[msgspec.Struct]) -> None:
    # What one of them has and the other hasn't.
    others = {"tools", "echo", "suffix", "top_logprobs", "include_reasoning"}
    others.add("thinking_token_budget")
    assert KNOWN_FIELDS.keys() & set(schema.__struct_fields__) <= others


EMPTY = (None, False, 0, "", [], {})


def own_fields(name: str) -> list[Any]:
    """The endpoints whose schemas don't have a field."""
    both = (ChatCompletions.decoder, Completions.decoder)
    return [decoder for decoder in both if name not in decoder.type.__struct_fields__]


@pytest.mark.parametrize("name", KNOWN_FIELDS)
def test_false_and_empty_values_are_neutral(name: str) -> None:
    for value in EMPTY:
        body = json.dumps({"messages": [USER], "prompt": "a", name: value}).encode()
        for decoder in own_fields(name):
            if value is None or value not in KNOWN_FIELDS[name].meant:
                decode(decoder, body, IgnoredFields())


async def test_what_a_schema_has_only_to_refuse_may_be_empty(server: Server) -> None:
    for value in EMPTY:
        names = ("functions", "function_call")
        answer = await server.chat(**dict.fromkeys(names, value))
        assert answer.status_code == 200, (value, answer.text)


def test_empty_values_that_mean_something_are_refused() -> None:
    with pytest.raises(ApiError, match="web_search_options"):
        read({"web_search_options": {}})
    with pytest.raises(ApiError, match="thinking_token_budget"):
        decode(Completions.decoder, b'{"prompt": "a", "thinking_token_budget": 0}', IgnoredFields())


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ('"session_id": 1e999', "session_id"),
        ('"session_id": {"a": [1e999]}', "session_id[...][0]"),
        ('"kv_transfer_params": {"a": {"b": 1e999}}', "kv_transfer_params[...][...]"),
        ('"messages": [{"role": "user", "x": {"a": 1e999}}]', "messages[][...][...]"),
        ('"stream_options": {"x": 1e999}', "stream_options[...]"),
    ],
)
def test_a_number_out_of_range_in_an_ignored_field_is_told_with_its_place(
    field: str, path: str
) -> None:
    body = '{"messages": [{"role": "user", "content": "a"}], ' + field + "}"
    with pytest.raises(ApiError, match="Number out of range") as refused:
        decode(ChatCompletions.decoder, body.encode(), IgnoredFields())
    assert refused.value.param == path


def test_null_passes_wherever_a_field_may_be_left_out() -> None:
    for decoder in (ChatCompletions.decoder, Completions.decoder, Tokenize.decoder):
        body: dict[str, Any] = dict.fromkeys(decoder.type.__struct_fields__)
        body |= {"messages": [USER]} if decoder is not Completions.decoder else {"prompt": "a"}
        decode(decoder, json.dumps(body).encode(), IgnoredFields())
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}
    names = ("content", "name", "refusal", "annotations", "audio", "function_call", "reasoning")
    read({"messages": [dict.fromkeys(names) | message]})


async def test_unknown_fields_are_ignored_and_named_once(server: Server, named: Any) -> None:
    message = {
        **USER,
        "id": "m1",
        "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}],
    }
    call = {"function": {"name": "f", "arguments": "{}"}, "extra_content": {}}
    history = {"role": "assistant", "content": "", "tool_calls": [call], "timestamp": 1}
    body = {
        "messages": [message, history, message],
        "keep_alive": "5m",
        "repeat_penalty": 1.1,
        "stream_options": {"foo": 1},
        "session_id": 3,
        "max_tokens": 2.0,
    }
    for _ in range(2):
        answer = await server.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
    for name in (
        "'keep_alive'",
        "'repeat_penalty'",
        "'session_id'",
        "'stream_options.foo'",
        "'messages[].id'",
        "'messages[].timestamp'",
        "'messages[].content[].cache_control'",
        "'messages[].tool_calls[].extra_content'",
    ):
        assert named().count(name) == 1
    params = server.engine.submitted[0].request.params
    assert params.max_tokens == 2
    assert bytes(id for id in server.engine.submitted[0].request.prompt if id < 256).startswith(
        b"u:hi\n"
    )


async def test_strict_requests(start_server: StartServer) -> None:
    async with start_server(strict_requests=True) as server:
        for fields, param in (
            ({"colour": "red"}, "colour"),
            ({"messages": [{**USER, "colour": "red"}]}, "messages[0].colour"),
            ({"messages": [{**USER, "colour": "red"}], "priority": 1}, "messages[0].colour"),
        ):
            answer = await server.chat(**fields)
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == param
            assert answer.json()["error"]["code"] == "unknown_parameter"
        assert (await server.chat(priority=1, best_of=None)).status_code == 200


def test_names_in_the_log_are_few_and_harmless(named: Any) -> None:
    ignored = IgnoredFields()
    for number in range(3):
        fields = {f"x{number}-{i}": 1 for i in range(500)}
        body = json.dumps({"messages": [USER], "\n\x1b[2J" * 100: 1, **fields}).encode()
        decode(ChatCompletions.decoder, body, ignored)
    assert len(ignored._named) == MAX_NAMED
    assert len(named()) < MAX_NAMED * 80
    assert "\x1b" not in named()
    assert named().count("\n") <= 3


def test_the_search_for_names_is_bounded(named: Any) -> None:
    filler = {**USER, "content": "x" * MAX_SEARCHED_BYTES}
    read({"messages": [{**USER, "first": 1}, filler, {**USER, "last": 1}]})
    assert "first" in named()
    assert "last" not in named()


@pytest.mark.parametrize("text", ["\\ud83d", "a\\udc00", "\\uD83D\\u0041", "\\ud83d\\ud83d\\udc00"])
def test_half_a_character_is_named(text: str) -> None:
    with pytest.raises(ApiError, match=r"half of a character: the lone surrogate \\u[dD]"):
        decode(Completions.decoder, f'{{"prompt": "{text}"}}'.encode(), IgnoredFields())
    decode(Completions.decoder, b'{"prompt": "\\ud83d\\ude00"}', IgnoredFields())
    with pytest.raises(ApiError, match="not valid JSON"):
        decode(Completions.decoder, b'{"prompt": "\\ud83d\\ude00', IgnoredFields())


def test_a_lenient_schema_checks_as_the_strict_one_does() -> None:
    for decoder, body, path in (
        (ChatCompletions.decoder, {"messages": [], "x": 1}, "messages"),
        (ChatCompletions.decoder, {"messages": [{**USER, "x": 1, "name": 5}]}, "messages[0].name"),
        (ChatCompletions.decoder, {"messages": [USER] * 20000, "x": 1}, "messages"),
        (Completions.decoder, {"prompt": "a", "x": 1, "top_p": 2}, "top_p"),
        (Completions.decoder, {"x": 1}, "prompt"),
        (Detokenize.decoder, {"tokens": [-1], "x": 1}, "tokens[0]"),
    ):
        with pytest.raises(ApiError) as refused:
            decode(decoder, json.dumps(body).encode(), IgnoredFields())
        assert refused.value.param == path
    completion = decode(
        Completions.decoder, b'{"prompt": "a", "x": 1, "logprobs": true}', IgnoredFields()
    )
    assert isinstance(completion, CompletionRequest)
    assert completion.logprobs == 1
