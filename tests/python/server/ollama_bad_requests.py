"""Requests of Ollama's API that every server refuses with 400, for a model of 258 tokens."""

from __future__ import annotations

from typing import Any

CHAT = "/api/chat"
GENERATE = "/api/generate"
SHOW = "/api/show"
ASK = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> tuple[str, Any]:
    return CHAT, {"messages": ASK, **fields}


def raw_chat(field: bytes) -> tuple[str, Any]:
    return CHAT, b'{"messages":[{"role":"user","content":"hi"}],' + field + b"}"


def options(**fields: Any) -> tuple[str, Any]:
    return chat(options=fields)


def generate(**fields: Any) -> tuple[str, Any]:
    return GENERATE, {"prompt": "hi", **fields}


def message(**fields: Any) -> tuple[str, Any]:
    return CHAT, {"messages": [{**ASK[0], **fields}]}


# name: (what is asked, a part of the error)
OLLAMA_BAD_REQUESTS: dict[str, tuple[tuple[str, Any], str]] = {
    "nothing": ((CHAT, b""), "JSON"),
    "not JSON": ((GENERATE, b"hello"), "JSON"),
    "a list": ((SHOW, b"[]"), "form"),
    "100,000 brackets": ((CHAT, b"[" * 100_000), ""),
    "100,000 brackets in a format": (raw_chat(b'"format":' + b'{"a":' * 100_000), ""),
    "100,000 brackets in arguments": (
        (
            CHAT,
            b'{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f",'
            b'"arguments":{"a":' + b"[" * 100_000,
        ),
        "",
    ),
    "invalid UTF-8": (raw_chat(b'"keep_alive":"\xff\xfe"'), "UTF-8"),
    "a lone surrogate": ((GENERATE, b'{"prompt":"\\ud800"}'), "surrogate"),
    "messages a string": ((CHAT, {"messages": "hi"}), "messages"),
    "a message a string": ((CHAT, {"messages": ["hi"]}), "messages[0]"),
    "no role": ((CHAT, {"messages": [{"content": "hi"}]}), "messages[0].role"),
    "a long role": (message(role="a" * 65), "messages[0].role"),
    "a content of parts": (message(content=[{"type": "text", "text": "hi"}]), "content"),
    "a picture": (message(images=["aGk="]), "messages[0].images"),
    "a picture of nothing": (message(images=5), "messages[0].images"),
    "calls a string": (message(tool_calls="f"), "tool_calls"),
    "a call without a function": (message(tool_calls=[{}]), "function"),
    "arguments a number": (
        message(tool_calls=[{"function": {"name": "f", "arguments": 5}}]),
        "arguments",
    ),
    "1,000 calls": (
        message(tool_calls=[{"function": {"name": "f", "arguments": {}}}] * 1000),
        "tool_calls",
    ),
    "a prompt of numbers": (generate(prompt=[1, 2]), "prompt"),
    "a system of numbers": (generate(system=5), "system"),
    "raw and a system": (generate(raw=True, system="a"), "system"),
    "raw and thoughts": (generate(raw=True, think=True), "think"),
    "a suffix": (generate(suffix="a"), "suffix"),
    "a context": (generate(context=[1, 2]), "context"),
    "a template": (generate(template="{{ .Prompt }}"), "template"),
    "pictures": (generate(images=["aGk="]), "images"),
    "a picture wanted": (generate(width=64, height=64), "not supported"),
    "options a string": (chat(options="hot"), "options"),
    "temperature below": (options(temperature=-1), "options.temperature"),
    "temperature NaN": (raw_chat(b'"options":{"temperature":NaN}'), "JSON"),
    "temperature 1e999": (raw_chat(b'"options":{"temperature":1e999}'), "options.temperature"),
    "top_k 2**40": (options(top_k=2**40), "options.top_k"),
    "top_p above": (options(top_p=1.5), "options.top_p"),
    "min_p a word": (options(min_p="x"), "options.min_p"),
    "num_predict -3": (options(num_predict=-3), "options.num_predict"),
    "num_predict 1.5": (options(num_predict=1.5), "options.num_predict"),
    "num_ctx below": (options(num_ctx=-1), "options.num_ctx"),
    "seed 2**70": (options(seed=2**70), "seed"),
    "seed of a million digits": (raw_chat(b'"options":{"seed":' + b"9" * 1_000_000 + b"}"), ""),
    "repeat_penalty 0": (options(repeat_penalty=0), "options.repeat_penalty"),
    "presence_penalty above": (options(presence_penalty=3), "options.presence_penalty"),
    "1,000 stop strings": (options(stop=["a"] * 1000), "options.stop"),
    "stop a number": (options(stop=5), "options.stop"),
    "mirostat": (options(mirostat=2), "options.mirostat"),
    "tfs_z": (options(tfs_z=0.5), "options.tfs_z"),
    "typical_p": (options(typical_p=0.5), "options.typical_p"),
    "repeat_last_n": (options(repeat_last_n=10), "options.repeat_last_n"),
    "repeat_last_n a list": (options(repeat_last_n=[[1]]), "options.repeat_last_n"),
    "a form of another kind": (chat(format="xml"), "format"),
    "a form of a number": (chat(format=5), "format"),
    "a schema that can't be honoured": (chat(format={"not": {"type": "null"}}), "not"),
    "a billion items": (chat(format={"type": "array", "minItems": 10**9}), ""),
    "a schema in 200 others": (
        raw_chat(b'"format":' + b'{"items":' * 200 + b"{}" + b"}" * 200),
        "",
    ),
    "thoughts": (chat(think=True), "think"),
    "thoughts at a level": (chat(think="high"), "think"),
    "thoughts at no level": (chat(think="loud"), "think"),
    "thoughts of a number": (chat(think=5), "think"),
    "keep_alive a word": (chat(keep_alive="long"), "keep_alive"),
    "keep_alive 10,000 hours": (chat(keep_alive="1h" * 10_000), "keep_alive"),
    "keep_alive a list": (generate(keep_alive=[5]), "keep_alive"),
    "keep_alive a word, and no prompt": ((GENERATE, {"keep_alive": "5 minutes"}), "keep_alive"),
    "stream a word": (chat(stream="maybe"), "stream"),
    "a tool without a function": (chat(tools=[{"type": "function"}]), "function"),
    "a tool that is searched": (chat(tools=[{"type": "web_search"}]), "web_search"),
    "tools a string": (chat(tools="clock"), "tools"),
    "top_logprobs alone": (chat(top_logprobs=2), "top_logprobs"),
    "top_logprobs alone, and raw": (generate(raw=True, top_logprobs=2), "top_logprobs"),
    "too many logprobs": (chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    "a model of a number": (chat(model=5), "model"),
    "a shown model of a number": ((SHOW, {"model": 5}), "model"),
    "a thousand and more fields": (chat(**{f"x{i}": 1 for i in range(2000)}), ""),
}
