"""Streams that are written without a task per stream being woken: the bytes are those of streams
that go through ASGI's messages, whatever the tokens and options are.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import Output
from minisgl.server import call
from minisgl.server.event_pump import EventPump, PumpedStream
from minisgl.server.plain_text import PlainText
from minisgl.text.formats import AnswerFormats
from tests.python.server.byte_tokenizer import END, VOCAB_SIZE
from tests.python.server.conftest import Server, StartServer, events
from tests.python.server.fake_engine import FakeClient, Script, output
from tests.python.waiting import PATIENCE, until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TEXTS = (
    "plain words, and more of them. ",
    '"quoted" \\ / \b\f\n\r\t\x00\x1f\x7f\x80 <&> \u2028\u2029',
    "é ü ß Ω 語 한국어 🙂 👨‍👩‍👧 \U0010ffff \ufffd \ufeff",
    "one STOP two ST STOSTOP ababac éstop語",
)
# An API, a request's options, and whether outputs of whole characters take the shorter way.
OPTIONS: list[tuple[str, dict[str, Any], bool]] = [
    (CHAT, {}, True),
    (COMPLETIONS, {}, True),
    (CHAT, {"stream_options": {"include_usage": True}}, True),
    (COMPLETIONS, {"stream_options": {"continuous_usage_stats": True}}, False),
    (CHAT, {"stop": ["STOP", "abac", "p語"]}, True),
    (COMPLETIONS, {"stop": "é語", "include_stop_str_in_output": True}, True),
    (COMPLETIONS, {"stop": ["\ufffd\ufffd\ufffd", '"', "\n"], "min_tokens": 12}, True),
    (COMPLETIONS, {"stop": ["<end>", "zz"]}, False),
    (CHAT, {"skip_special_tokens": False}, True),
    (COMPLETIONS, {"skip_special_tokens": False, "stop": ["<turn>x", "zz"]}, False),
    (CHAT, {"logprobs": True, "top_logprobs": 2}, False),
    (COMPLETIONS, {"logprobs": 1, "echo": True}, False),
    (COMPLETIONS, {"echo": True}, True),
    (CHAT, {"return_token_ids": True}, False),
    ("/v1/responses", {}, False),
    ("/v1/messages", {}, False),
    ("/api/chat", {}, False),
]


TOOL = {"type": "function", "function": {"name": "write", "parameters": {"type": "object"}}}
TOOLS = {"tools": [TOOL]}
# Answers that are parsed: likewise, with the parsers.
CALLS = AnswerFormats("hermes")
BOTH = AnswerFormats("hermes", "qwen3")
PARSED: list[tuple[str, dict[str, Any], bool, AnswerFormats]] = [
    (CHAT, TOOLS, True, CALLS),
    (CHAT, {**TOOLS, "stop": ["STOP", "rite", "p語"]}, True, CALLS),
    (CHAT, {**TOOLS, "parallel_tool_calls": False}, True, CALLS),
    (CHAT, {**TOOLS, "return_token_ids": True}, False, CALLS),
    (CHAT, {**TOOLS, "stream_options": {"include_usage": True}}, True, BOTH),
    (CHAT, {**TOOLS, "stream_options": {"continuous_usage_stats": True}}, False, BOTH),
    (CHAT, {"include_reasoning": False, "stream_options": {"include_usage": True}}, True, BOTH),
    (CHAT, {"logprobs": True}, False, BOTH),
    (CHAT, TOOLS, True, AnswerFormats("openai", "gpt_oss")),
    (CHAT, TOOLS, True, AnswerFormats("llama3_json")),
    ("/v1/responses", {}, False, BOTH),
]
PARSED_TEXTS = (
    *TEXTS,
    "<think>\nI see, 語 \t so. </think>\n\nWell < then",
    '<tool_call>\n{"name": "write", "arguments": {"a": "é \\n\\" {} \\\\ x ", "b": [1, 2] }}\n'
    "</tool_call>\n",
    '<tool_call>{"name": "write"}</tool_call>',
    '\n{"name": "write", "parameters": {"c": "a b c"}}',
    "<|channel|>analysis<|message|>I see that.<|end|><|start|>assistant",
    '<|channel|>commentary to=functions.write <|message|>{"a": "b c d"}<|call|>',
    "<tool_",
)


def random_steps(
    choose: random.Random, texts: Sequence[str] = TEXTS, *, share: float = 0.6
) -> list[list[int]]:
    """Token ids of some steps: texts, about that share of all, and bytes of all kinds."""
    ids: list[int] = []
    for _ in range(choose.randint(1, 6)):
        if choose.random() < share:
            ids += choose.choice(texts).encode()
        else:
            ids += choose.choices(range(VOCAB_SIZE), k=choose.randint(1, 8))
    steps = []
    while ids:
        count = choose.choice([1, 1, 1, 2, 3, 7])
        steps.append(ids[:count])
        ids = ids[count:]
    return steps


async def written() -> None:
    """Gives the server's loop the turns in which it writes what has been delivered."""
    for _ in range(12):
        await asyncio.sleep(0)


def scripted(steps: list[list[int]], finish: str) -> Script:
    """Delivers each step once the one before has been written."""

    async def script(client: FakeClient, stream: TokenStream) -> None:
        for position, ids in enumerate(steps):
            await written()
            if stream.finished:
                return
            last = position == len(steps) - 1
            if last and finish == "stop":
                ids = [*ids, END]
            stream.deliver(output(stream, ids, finish if last else ""))  # type: ignore[arg-type]

    return script


async def answer(server: Server, path: str, fields: dict[str, Any]) -> bytes:
    """All that comes back over the wire, without its times and what differs from call to call."""
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 1000,
        "model": "alias",
    }
    if path == COMPLETIONS:
        asked = {"prompt": "hi", "max_tokens": 1000}
    elif path == "/v1/responses":
        asked = {"input": "hi", "max_output_tokens": 1000}
    body = json.dumps({**asked, "stream": True, **fields}).encode()
    reader, writer = await server.connect()
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-Id: one\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    data = await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    data = re.sub(rb'"(created(_at)?|completed_at|\w+_duration)":("[^"]*"|\d+)', b"", data)
    data = re.sub(rb"(resp|msg|rs|call)_[0-9a-f]{24,}", b"", data)
    return re.sub(rb"\r\ndate: [^\r]*", b"", data)


def without_frames(data: bytes) -> bytes:
    """An answer's body, for those in which times change the lengths of chunks."""
    return re.sub(rb"\r\n[0-9a-f]+\r\n", b"", data)


@pytest.mark.parametrize(
    ("path", "fields", "plain", "formats"), [*((*row, AnswerFormats()) for row in OPTIONS), *PARSED]
)
async def test_the_bytes_are_those_of_asgi_messages(
    start_server: StartServer,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    fields: dict[str, Any],
    plain: bool,
    formats: AnswerFormats,
) -> None:
    choose = random.Random(f"{path} {fields}")
    parsed = formats != AnswerFormats()
    texts, share = (PARSED_TEXTS, 0.9) if parsed else (TEXTS, 0.6)
    pumped = looked_up = 0
    add, take = EventPump.add, PlainText.take

    def counted(pump: EventPump, stream: PumpedStream) -> None:
        nonlocal pumped
        pumped += 1
        add(pump, stream)

    def noted(text: PlainText, now: float) -> bytes | None:
        nonlocal looked_up
        found = take(text, now)
        looked_up += found is not None
        return found

    monkeypatch.setattr(EventPump, "add", counted)
    monkeypatch.setattr(PlainText, "take", noted)
    async with start_server(max_model_len=2000, formats=formats) as server:
        for number in range(12 if parsed else 6):
            steps, finish = (
                random_steps(choose, texts, share=share),
                choose.choice(["stop", "length"]),
            )
            server.engine.script = scripted(steps, finish)
            found = await answer(server, path, fields)
            by_pump = pumped
            with monkeypatch.context() as patch:
                patch.setattr(call, "CHUNK_EXTENSION", "nothing that anybody knows")
                expected = await answer(server, path, fields)
            assert pumped == by_pump
            if path.startswith("/api"):
                found, expected = without_frames(found), without_frames(expected)
            assert found == expected, (number, steps)
            assert b" 200 " in found[:20]
    assert pumped
    assert bool(looked_up) == plain


async def test_several_choices(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each choice has its own events in order; how choices take turns is nobody's promise."""
    choose = random.Random(3)
    fields = {"n": 3, "stop": ["STOP"], "stream_options": {"include_usage": True}}
    async with start_server(max_model_len=2000, max_live=10) as server:
        for _ in range(6):
            scripts = [scripted(random_steps(choose), "length") for _ in range(3)]

            async def script(
                client: FakeClient, stream: TokenStream, scripts: list[Script] = scripts
            ) -> None:
                await scripts[stream.id % 3](client, stream)

            server.engine.script = script
            bodies = []
            for extension in (call.CHUNK_EXTENSION, "nothing that anybody knows"):
                monkeypatch.setattr(call, "CHUNK_EXTENSION", extension)
                data = await answer(server, CHAT, fields)
                bodies.append(without_frames(data.partition(b"\r\n\r\n")[2]))
            monkeypatch.undo()
            parted = [
                sorted(
                    re.findall(rb"data: [^\n]*", body),
                    key=lambda event: re.findall(rb'"index":(\d)', event) or [b"9"],
                )
                for body in bodies
            ]
            assert parted[0] == parted[1]


async def test_one_stream_fails_beside_others(start_server: StartServer) -> None:
    """An engine's error in the turn in which others have tokens ends that stream alone."""
    streams: list[TokenStream] = []

    async def script(client: FakeClient, stream: TokenStream) -> None:
        streams.append(stream)
        await until(lambda: stream.finished)

    async with start_server(script) as server:
        asked = [asyncio.create_task(server.chat(stream=True, max_tokens=9)) for _ in range(3)]
        await until(lambda: len(streams) == 3)
        for _ in range(3):
            for stream in streams:
                stream.deliver(output(stream, [ord("x")]))
            await written()
        streams[0].deliver(output(streams[0], [ord("y")], "length"))
        streams[1].deliver(Output(streams[1].id, [], "error", "engine_failure", "broken"))
        streams[2].deliver(output(streams[2], [ord("y")]))
        await written()
        streams[2].deliver(output(streams[2], [ord("z")], "length"))
        found = await asyncio.gather(*asked, return_exceptions=True)
    answers = [one for one in found if isinstance(one, httpx.Response)]
    (error,) = (one for one in found if isinstance(one, BaseException))
    assert isinstance(error, httpx.RemoteProtocolError)  # its body has no end
    texts = set()
    for response in answers:
        chunks = [json.loads(event) for event in events(response.text)[:-1]]
        texts.add("".join(one["choices"][0]["delta"].get("content", "") for one in chunks))
    assert texts == {"xxxy", "xxxyz"}
