"""Answers that clients send back, over HTTP: the next prompt has the ids that were generated."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from minisgl.engine.stream import TokenStream
from minisgl.text.formats import AnswerFormats
from minisgl.text.frontend import TextFrontend
from minisgl.tokenizer import TemplateSource, Tokenizer
from tests.python.server.conftest import Server, StartServer, events
from tests.python.server.fake_engine import FakeClient, output
from tests.python.tokenizer.vocabularies import byte_level_bpe

EOS = 0
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = {"role": "user", "content": "hi"}


@contextlib.asynccontextmanager
async def answering(
    start_server: StartServer, text: str, *, memory: int = 2**20, **args: Any
) -> AsyncIterator[tuple[Server, list[int]]]:
    """A server that says `text` in tokens of one character each, and these."""
    tokenizer = Tokenizer(
        byte_level_bpe(), eos_token_ids=[EOS], chat_template=TemplateSource({"default": TEMPLATE})
    )
    ids = [token for character in text for token in tokenizer.encode(character)]
    assert ids != tokenizer.encode(text)

    async def script(client: FakeClient, stream: TokenStream) -> None:
        for token in ids:
            stream.deliver(output(stream, [token]))
        stream.deliver(output(stream, [EOS], "stop"))

    async with start_server(script, **args) as server:
        server.engine.vocab_size = tokenizer.vocab_size
        server.state.text = frontend = TextFrontend(tokenizer, [], None, answer_memory_bytes=memory)
        yield server, ids
        await frontend.close()


def contains(ids: list[int], part: list[int]) -> bool:
    return any(ids[at : at + len(part)] == part for at in range(len(ids) - len(part) + 1))


async def ask(server: Server, messages: list[Any], key: str = "none", **fields: Any) -> str:
    """The answer's text."""
    answer = await server.http.post(
        "/v1/chat/completions",
        json={"messages": messages, **fields},
        headers={"authorization": f"Bearer {key}"},
    )
    assert answer.status_code == 200, answer.text
    if fields.get("stream"):
        chunks = [json.loads(event) for event in events(answer.text)[:-1]]
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    choices = answer.json()["choices"]
    return str(choices[-1]["message"]["content"])


async def comes_back(
    server: Server, ids: list[int], *, key: str = "none", later_key: str = "", **fields: Any
) -> bool:
    """Whether the prompt of a conversation's second turn has the first answer's ids."""
    said = await ask(server, [USER], key, **fields)
    first = server.engine.submitted[-1].request.prompt
    await ask(server, [USER, {"role": "assistant", "content": said}, USER], later_key or key)
    second = server.engine.submitted[-1].request.prompt
    assert server.state.text
    decode = server.state.text.tokenizer.decode
    shown = decode(second, skip_special_tokens=False)
    assert f"<|im_start|>assistant\n{said}<|im_end|>" in shown
    came = contains(second, ids)
    assert came == (second[: len(first) + len(ids)] == first + ids)
    return came


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 2}, {"max_tokens": 100}])
async def test_the_next_turn_begins_with_what_was_generated(
    start_server: StartServer, fields: dict[str, Any]
) -> None:
    async with answering(start_server, "hello world, hello") as (server, ids):
        assert await comes_back(server, ids, **fields)
        # Who asks for a prompt's tokens gets the tokenizer's.
        messages = [USER, {"role": "assistant", "content": "hello world, hello"}, USER]
        tokens = await server.http.post("/tokenize", json={"messages": messages})
        assert not contains(tokens.json()["tokens"], ids)


async def test_an_answer_that_a_stop_string_cut(start_server: StartServer) -> None:
    async with answering(start_server, "hello world, hello") as (server, ids):
        assert await comes_back(server, ids[:10], stop="d, h")


async def test_keys_do_not_share_answers(start_server: StartServer) -> None:
    async with answering(start_server, "hello world", api_key=("a", "b")) as (server, ids):
        assert not await comes_back(server, ids, key="a", later_key="b")
        assert await comes_back(server, ids, key="b")


async def test_salts_keep_answers_apart(start_server: StartServer) -> None:
    async with answering(start_server, "hello world") as (server, ids):
        assert not await comes_back(server, ids, cache_salt="a")
        said = {"role": "assistant", "content": "hello world"}
        for salt, known in (("b", False), ("", False), ("a", True)):
            await ask(server, [USER, said, USER], cache_salt=salt)
            assert contains(server.engine.submitted[-1].request.prompt, ids) is known


async def test_without_memory_there_is_none(start_server: StartServer) -> None:
    async with answering(start_server, "hello world", memory=0) as (server, ids):
        assert not await comes_back(server, ids)


async def test_what_goes_on_with_the_last_message_is_no_answer_of_its_own(
    start_server: StartServer,
) -> None:
    async with answering(start_server, "hello world") as (server, ids):
        begun = [USER, {"role": "assistant", "content": "well, "}]
        await ask(server, begun, continue_final_message=True)
        messages = [*begun[:1], {"role": "assistant", "content": "well, hello world"}, USER]
        await ask(server, messages)
        assert not contains(server.engine.submitted[-1].request.prompt, ids)


@pytest.mark.parametrize(
    "said",
    [
        'Look: hello\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
        "<think>\nhello world\n</think>\n\nhello hello",
    ],
)
async def test_calls_and_thoughts_come_back_as_they_were_generated(
    start_server: StartServer, said: str
) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    formats = AnswerFormats("hermes", "qwen3", generic=True)
    async with answering(start_server, said, formats=formats, max_model_len=2000) as (server, ids):
        answer = await server.http.post(
            "/v1/chat/completions", json={"messages": [USER], "tools": tools}
        )
        message = answer.json()["choices"][0]["message"]
        assert message["tool_calls"] or message["reasoning_content"]
        assert message["content"] != said
        await ask(server, [USER, message, USER], tools=tools)
        second = server.engine.submitted[-1].request.prompt
        shown = said.rpartition("</think>\n\n")[2]  # the template leaves the thought out
        assert server.state.text is not None
        if shown == said:
            assert contains(second, ids)
        else:
            assert contains(second, ids[-len(shown) :])
