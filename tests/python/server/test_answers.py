"""What answers say besides their text: token ids, log probabilities of the prompt, why they ended,
as vLLM has it; and what is left of a prompt that is too long.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from minisgl.sampling_params import MAX_LOGPROBS
from minisgl.tokenizer.fill_in_middle import FillInMiddle
from tests.python.server.byte_tokenizer import END, TURN
from tests.python.server.conftest import Server, StartServer, events
from tests.python.server.fake_engine import FakeClient, Script, output, reply

HALF = -math.log(2)


def says(*tokens: int, finish: str = "length") -> Script:
    """A script that says these tokens, one per step, and ends with the last."""

    async def script(client: FakeClient, stream: Any) -> None:
        for position, token in enumerate(tokens):
            last = position == len(tokens) - 1
            if not stream.finished:
                stream.deliver(output(stream, [token], finish if last else ""))  # type: ignore[arg-type]

    return script


async def choices_of(server: Server, path: str, **fields: Any) -> tuple[dict[str, Any], list[Any]]:
    """Choice 0 of a whole answer, and its parts in a stream."""
    ask = server.chat if path == "chat" else server.complete
    if "logprobs" in fields and path == "completions":
        fields = {**fields, "logprobs": 1}
    whole = await ask("hi", **fields)
    assert whole.status_code == 200, whole.text
    *chunks, done = events((await ask("hi", stream=True, **fields)).text)
    assert done == "[DONE]"
    return whole.json()["choices"][0], [json.loads(chunk)["choices"][0] for chunk in chunks]


def text_of(part: dict[str, Any]) -> str:
    message = part.get("message") or part.get("delta")
    text: str = part["text"] if message is None else message.get("content", "")
    return text


def joined_logprobs(parts: list[dict[str, Any]]) -> list[Any]:
    """What parts of a choice say of its tokens."""
    said = [part["logprobs"] for part in parts if part["logprobs"] is not None]
    if "content" in said[0]:
        return [entry for one in said for entry in one["content"]]
    return [[value for one in said for value in one[name]] for name in said[0]]


# --- how an answer ends


@pytest.mark.parametrize("path", ["chat", "completions"])
@pytest.mark.parametrize(
    ("tokens", "stop", "text"),
    [
        (b"Yes", ["<turn>"], "Yes"),
        (b"Yes\n", ["\n<turn>"], "Yes"),
        (b"Yes\n", ["<turn>", "\n\n"], "Yes\n"),
        (b"Yes", ["<turn>!"], "Yes?"),  # the stop string doesn't come
        (b"Yes", ["<turn>?"], "Yes"),
    ],
)
async def test_a_stop_string_with_a_special_token(
    start_server: StartServer, path: str, tokens: bytes, stop: list[str], text: str
) -> None:
    script = says(*tokens, TURN, *b"?", finish="length")
    async with start_server(script) as server:
        whole, parts = await choices_of(
            server, path, stop=stop, logprobs=True, return_token_ids=True
        )
        assert text_of(whole) == text
        assert "".join(map(text_of, parts)) == text
        stopped = text != "Yes?"
        reason = ("stop", stop[0]) if stopped else ("length", None)
        for last in (whole, parts[-1]):
            assert (last["finish_reason"], last["stop_reason"]) == reason
        said = [*tokens, TURN] if stopped and "?" not in stop[0] else [*tokens, TURN, ord("?")]
        assert whole["token_ids"] == said
        assert [token for part in parts for token in part.get("token_ids", [])] == said
        assert joined_logprobs(parts) == joined_logprobs([whole])


@pytest.mark.parametrize("path", ["chat", "completions"])
async def test_why_a_choice_stopped(start_server: StartServer, path: str) -> None:
    async with start_server(reply("Hello")) as server:
        for fields, expected in (
            ({}, ("stop", None)),  # the model's own end
            ({"max_tokens": 2}, ("length", None)),
            ({"stop": "ll"}, ("stop", "ll")),
            ({"stop_token_ids": [END]}, ("stop", END)),
        ):
            whole, parts = await choices_of(server, path, **fields)
            for last in (whole, parts[-1]):
                assert (last["finish_reason"], last["stop_reason"]) == expected


async def test_the_token_that_ends_an_answer_may_complete_a_stop_string(
    start_server: StartServer,
) -> None:
    async with start_server(reply("Hello\n")) as server:
        whole, parts = await choices_of(server, "chat", stop=["\n<end>"], return_token_ids=True)
        assert text_of(whole) == "".join(map(text_of, parts)) == "Hello"
        assert whole["stop_reason"] == "\n<end>"
        assert whole["token_ids"] == [*b"Hello\n", END]


@pytest.mark.parametrize("path", ["chat", "completions"])
async def test_an_answer_cut_within_a_character(start_server: StartServer, path: str) -> None:
    cut = "a😀\ufffd é".encode()[:-1]
    async with start_server(says(*cut)) as server:
        whole, parts = await choices_of(server, path, logprobs=True)
        assert text_of(whole) == "".join(map(text_of, parts)) == "a😀\ufffd "
        logprobs = whole["logprobs"]
        if path == "chat":
            assert logprobs["content"][-1]["bytes"] == [0xC3]
        else:
            assert logprobs["tokens"][-1] == "bytes:\\xc3"
            assert logprobs["text_offset"][-1] == len("a😀\ufffd ")


@pytest.mark.parametrize("echo", [False, True])
async def test_an_answer_that_ends_a_character_of_its_prompt(
    start_server: StartServer, echo: bool
) -> None:
    prompt = list("aé😀".encode())
    async with start_server(says(*prompt[-2:], *b"b")) as server:
        fields = {"prompt": prompt[:-2], "echo": echo, "logprobs": 0}
        choice = (await server.complete(**fields)).json()["choices"][0]
        *chunks, _ = events((await server.complete(**fields, stream=True)).text)
        parts = [json.loads(chunk)["choices"][0] for chunk in chunks]
        assert choice["text"] == "".join(map(text_of, parts)) == ("aé😀b" if echo else "😀b")
        # The script has no log probabilities of the prompt.
        assert choice["logprobs"]["text_offset"] == ([2, 2, 3] if echo else [0, 0, 1])


# --- token ids


async def test_token_ids_of_a_chat(server: Server) -> None:
    answer = (await server.chat("hi", return_token_ids=True, n=2)).json()
    assert answer["prompt_token_ids"] == server.engine.submitted[0].request.prompt
    assert [choice["token_ids"] for choice in answer["choices"]] == [[*b"Hello", END]] * 2
    stream = (await server.chat("hi", return_token_ids=True, n=2, stream=True)).text
    *chunks, _ = map(json.loads, events(stream)[:-1])
    prompts = [chunk["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in chunk]
    assert prompts == [answer["prompt_token_ids"]]
    assert "prompt_token_ids" in json.loads(events(stream)[0])


async def test_token_ids_of_completions(server: Server) -> None:
    answer = (await server.complete(["ab", "c"], return_token_ids=True)).json()
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [[97, 98], [99]]
    assert [choice["token_ids"] for choice in answer["choices"]] == [[*b"Hello", END]] * 2
    _, parts = await choices_of(server, "completions", return_token_ids=True)
    assert [part["prompt_token_ids"] for part in parts if "prompt_token_ids" in part] == [
        [104, 105]
    ]
    assert "prompt_token_ids" in parts[0]


@pytest.mark.parametrize("path", ["chat", "completions"])
async def test_nothing_more_is_said_than_was_asked_for(server: Server, path: str) -> None:
    whole, parts = await choices_of(server, path, return_token_ids=False)
    assert not {"token_ids", "prompt_token_ids", "prompt_logprobs"} & set(whole)
    assert not any({"token_ids", "prompt_token_ids"} & set(part) for part in parts)
    assert all("stop_reason" not in part for part in parts[:-1])


# --- log probabilities of the prompt


async def test_prompt_logprobs_of_completions(server: Server) -> None:
    answer = (await server.complete(["ab", "cd"], prompt_logprobs=1)).json()
    expected = [
        [None, {str(token): {"logprob": HALF, "rank": 1, "decoded_token": chr(token)}}]
        for token in b"bd"
    ]
    assert [choice["prompt_logprobs"] for choice in answer["choices"]] == expected
    assert answer["choices"][0]["logprobs"] is None
    # Without alternatives the token itself is there.
    answer = (await server.complete("ab", prompt_logprobs=0)).json()
    entry = {"logprob": HALF, "rank": None, "decoded_token": "b"}
    assert answer["choices"][0]["prompt_logprobs"] == [None, {"98": entry}]


async def test_prompt_logprobs_of_a_chat_are_computed_once(server: Server) -> None:
    answer = (await server.chat("hi", prompt_logprobs=2, n=3)).json()
    prompt = server.engine.submitted[0].request.prompt
    first, *rest = answer["prompt_logprobs"]
    assert first is None
    assert [list(entry) for entry in rest] == [[str(token)] for token in prompt[1:]]
    asked = [stream.request.params.prompt_logprobs for stream in server.engine.submitted]
    assert asked == [2, None, None]


async def test_prompt_logprobs_beside_those_of_an_echo(server: Server) -> None:
    answer = await server.complete("ab", echo=True, logprobs=0, prompt_logprobs=1, max_tokens=0)
    choice = answer.json()["choices"][0]
    assert server.engine.submitted[0].request.params.prompt_logprobs == 1
    assert choice["logprobs"]["top_logprobs"] == [None, {"b": HALF}]
    assert choice["prompt_logprobs"][1]["98"]["rank"] == 1


async def test_prompt_logprobs_that_are_refused(start_server: StartServer) -> None:
    async with start_server(max_model_len=2**20) as server:
        for fields in (
            {"prompt_logprobs": MAX_LOGPROBS + 1},
            {"prompt_logprobs": -1},
            {"prompt_logprobs": 0, "stream": True},
            {"prompt_logprobs": 20, "n": 128, "prompt": [1] * 2000},  # 5 million
        ):
            answer = await server.complete(**{"prompt": "hi", **fields})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "prompt_logprobs"
        assert not server.engine.submitted


# --- prompts that are too long


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 3}, "fgh"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "left"}, "fgh"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, "abc"),
        ({"truncate_prompt_tokens": 8}, "abcdefgh"),
        ({"truncate_prompt_tokens": 9}, "abcdefgh"),
        ({"truncate_prompt_tokens": -1, "max_tokens": 2}, "efgh"),
        ({"truncate_prompt_tokens": -1}, "defgh"),
        ({"truncate_prompt_tokens": None, "max_tokens": 1, "prompt": "ab"}, "ab"),
    ],
)
async def test_truncated_prompts(
    start_server: StartServer, fields: dict[str, Any], kept: str
) -> None:
    async with start_server(
        max_model_len=6 if fields["truncate_prompt_tokens"] == -1 else 16
    ) as server:
        answer = await server.complete(
            **{"prompt": "abcdefgh", "echo": True, "logprobs": 0, **fields}
        )
        assert answer.status_code == 200, answer.text
        assert bytes(server.engine.submitted[0].request.prompt).decode() == kept
        choice = answer.json()["choices"][0]
        assert choice["text"].startswith(kept)
        assert choice["logprobs"]["tokens"][: len(kept)] == list(kept)


async def test_truncated_chat(start_server: StartServer) -> None:
    async with start_server(max_model_len=8) as server:
        answer = await server.chat(
            "a long question", truncate_prompt_tokens=-1, return_token_ids=True
        )
        assert answer.status_code == 200, answer.text
        (request,) = [stream.request for stream in server.engine.submitted]
        assert (len(request.prompt), request.params.max_tokens) == (7, 1)
        assert answer.json()["prompt_token_ids"] == request.prompt


async def test_nothing_left_of_a_prompt(server: Server) -> None:
    for ask in (server.chat, server.complete):
        answer = await ask("hi", truncate_prompt_tokens=0)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "truncate_prompt_tokens"


# --- a text with a gap


async def test_a_suffix_needs_a_model_that_knows_it(server: Server) -> None:
    answer = await server.complete("hi", suffix="there")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "suffix"
    assert "no fill-in-the-middle tokens" in answer.json()["error"]["message"]
    assert (await server.complete("hi", suffix="")).status_code == 200


async def test_a_text_with_a_gap(server: Server) -> None:
    assert server.state.text is not None
    server.state.text.tokenizer.fill_in_middle = FillInMiddle("<turn>", "<end>", "<turn>")
    assert (await server.complete("ab", suffix="cd")).status_code == 200
    assert (await server.complete([98, 97], suffix="cd")).status_code == 200
    prompts = [stream.request.prompt for stream in server.engine.submitted]
    assert prompts == [
        [TURN, *b"ab", END, *b"cd", TURN],
        [TURN, *b"ba", END, *b"cd", TURN],
    ]
    for prompt in ("ab", [98, 97]):
        answer = await server.complete(prompt, suffix="long " * 10000)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
    for fields in ({"echo": True}, {"truncate_prompt_tokens": 2}):
        answer = await server.complete("ab", suffix="cd", **fields)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "suffix"
