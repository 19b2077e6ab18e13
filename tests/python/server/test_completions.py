"""Completions: all forms of a prompt, echo, logprobs, streams."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.python.server.conftest import MODEL, Server, StartServer, events
from tests.python.server.fake_engine import endless, reply


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hi", [[104, 105]]),
        (["hi"], [[104, 105]]),
        (["h", "i"], [[104], [105]]),
        ([104, 105], [[104, 105]]),
        ([[104, 105], [0]], [[104, 105], [0]]),
    ],
)
async def test_forms_of_a_prompt(server: Server, prompt: Any, expected: list[list[int]]) -> None:
    answer = (await server.complete(prompt)).json()
    assert [stream.request.prompt for stream in server.engine.submitted] == expected
    assert answer["object"] == "text_completion"
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(expected)))
    assert {choice["text"] for choice in answer["choices"]} == {"Hello"}
    assert answer["usage"]["prompt_tokens"] == sum(map(len, expected))


async def test_prompts_times_n(server: Server) -> None:
    answer = (await server.complete(["a", "b"], n=2)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [s.request.prompt for s in server.engine.submitted] == [[97], [97], [98], [98]]
    assert answer["usage"]["prompt_tokens"] == 2


async def test_sixteen_tokens_are_the_default_and_cut_to_what_fits(
    start_server: StartServer,
) -> None:
    async with start_server(endless(delay=0), max_model_len=20) as server:
        for prompt, expected in (("abcd", 16), ("a" * 10, 10), ("a" * 19, 1)):
            choice = (await server.complete(prompt)).json()["choices"][0]
            assert (choice["text"], choice["finish_reason"]) == ("x" * expected, "length")


async def test_the_context_is_full(start_server: StartServer) -> None:
    async with start_server(endless(delay=0), max_model_len=20) as server:
        for prompt, fields, numbers in (
            ("a" * 20, {}, ("20",)),
            ("a" * 500, {}, ("20", "500")),
            ("a" * 21, {"max_tokens": 0, "echo": True}, ("20", "21")),
        ):
            answer = await server.complete(prompt, **fields)
            error = answer.json()["error"]
            assert answer.status_code == 400
            assert error["code"] == "context_length_exceeded"
            assert all(number in error["message"] for number in numbers)


async def test_what_is_wanted_is_cut_to_what_fits(start_server: StartServer) -> None:
    async with start_server(endless(delay=0), max_model_len=20) as server:
        for wanted in (5, 6, 32000, 2**63, -1, None):
            choice = (await server.complete("a" * 15, max_tokens=wanted)).json()["choices"][0]
            assert (choice["text"], choice["finish_reason"]) == ("x" * 5, "length"), wanted
        for fields, expected in (
            ({"max_completion_tokens": 3}, 3),
            ({"max_completion_tokens": 3, "max_tokens": 2}, 3),
            ({"max_completion_tokens": None, "max_tokens": 2}, 2),
            ({"max_completion_tokens": -1, "max_tokens": 2}, 5),
        ):
            choice = (await server.complete("a" * 15, **fields)).json()["choices"][0]
            assert choice["text"] == "x" * expected, fields


@pytest.mark.parametrize(("given", "alternatives"), [(True, 1), (False, None), (3.0, 3)])
async def test_logprobs_as_clients_write_them(
    server: Server, given: Any, alternatives: int | None
) -> None:
    choice = (await server.complete("ab", logprobs=given)).json()["choices"][0]
    assert (choice["logprobs"] is None) == (alternatives is None)
    assert server.engine.submitted[0].request.params.logprobs == alternatives


async def test_token_ids_may_be_floats(server: Server) -> None:
    await server.complete([[104.0, 105], [1e1]], logit_bias={"3.0": 1})
    assert [s.request.prompt for s in server.engine.submitted] == [[104, 105], [10]]
    assert server.engine.submitted[0].request.params.logit_bias == {3: 1.0}


async def test_echo(server: Server) -> None:
    answer = (await server.complete(["ab", "c"], echo=True)).json()
    assert [choice["text"] for choice in answer["choices"]] == ["abHello", "cHello"]
    answer = (await server.complete([97, 98], echo=True)).json()
    assert answer["choices"][0]["text"] == "abHello"


async def test_echo_of_the_prompt_alone(server: Server) -> None:
    answer = (await server.complete("ab", echo=True, max_tokens=0, logprobs=1)).json()
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, pytest.approx(-math.log(2))]
    assert choice["logprobs"]["top_logprobs"] == [None, {"b": pytest.approx(-math.log(2))}]
    assert answer["usage"]["completion_tokens"] == 0


async def test_logprobs(server: Server) -> None:
    answer = (await server.complete("ab", logprobs=2, max_tokens=2)).json()
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["H", "e"],
        "token_logprobs": [pytest.approx(-0.72), pytest.approx(-1.01)],
        "top_logprobs": [
            {"H": pytest.approx(-0.72), "I": pytest.approx(-0.73)},
            {"e": pytest.approx(-1.01), "f": pytest.approx(-1.02)},
        ],
        "text_offset": [0, 1],
    }


async def test_echo_with_logprobs(start_server: StartServer) -> None:
    async with start_server(reply("éx")) as server:
        answer = (await server.complete("ab", echo=True, logprobs=0)).json()
        choice = answer["choices"][0]
        assert choice["text"] == "abéx"
        logprobs = choice["logprobs"]
        assert logprobs["tokens"] == ["a", "b", "bytes:\\xc3", "bytes:\\xa9", "x"]
        # Both halves of a character stand where it begins.
        assert logprobs["text_offset"] == [0, 1, 2, 2, 3]
        assert logprobs["token_logprobs"][0] is None


@pytest.mark.parametrize("echo", [False, True])
async def test_a_stream_says_what_the_whole_answer_says(
    start_server: StartServer, echo: bool
) -> None:
    fields = {"echo": echo, "logprobs": 1, "stop": "lo w", "n": 2}
    async with start_server(reply("Hello world", delay=0.002)) as server:
        whole = (await server.complete(["ab", "cd"], **fields)).json()
        *chunks, done = events((await server.complete(["ab", "cd"], stream=True, **fields)).text)
        assert done == "[DONE]"
        for choice in whole["choices"]:
            parts = [json.loads(chunk)["choices"][0] for chunk in chunks]
            parts = [part for part in parts if part["index"] == choice["index"]]
            assert len(parts) > 2
            assert "".join(part["text"] for part in parts) == choice["text"]
            assert parts[-1]["finish_reason"] == choice["finish_reason"] == "stop"
            for name, values in choice["logprobs"].items():
                joined = [value for part in parts for value in part["logprobs"][name]]
                assert joined == values


async def test_include_stop_string(start_server: StartServer) -> None:
    async with start_server(reply("Hello world", delay=0.002)) as server:
        answer = await server.complete("a", stop="o", include_stop_str_in_output=True)
        assert answer.json()["choices"][0]["text"] == "Hello"


async def test_openai_sdk(server: Server) -> None:
    async with server.openai() as client:
        answer = await client.completions.create(model=MODEL, prompt="hi", logprobs=1)
        assert answer.choices[0].text == "Hello"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 6
        stream = await client.completions.create(model=MODEL, prompt="hi", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello"
        assert [model.id async for model in client.models.list()] == [MODEL, "alias"]
