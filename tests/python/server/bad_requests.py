"""Requests that every server refuses with 400, for a model of 258 tokens."""

from __future__ import annotations

import json
from typing import Any

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"}], **fields}


def raw_chat(field: bytes) -> bytes:
    return b'{"messages":[{"role":"user","content":"hi"}],' + field + b"}"


# name: (path, body, param or None where it isn't looked at)
BAD_REQUESTS: dict[str, tuple[str, Any, str | None]] = {
    "nothing": (CHAT, b"", None),
    "not JSON": (CHAT, b"hello", None),
    "half of it": (CHAT, b'{"messages": [{"role": "us', None),
    "something behind it": (CHAT, b"{} {}", None),
    "a list": (CHAT, b"[]", None),
    "a number": (CHAT, b"1", None),
    "null": (CHAT, b"null", None),
    "100,000 brackets": (CHAT, b"[" * 100_000, None),
    "100,000 brackets in a field": (CHAT, raw_chat(b'"metadata":' + b'{"a":' * 100_000), None),
    "100,000 brackets in the template": (
        CHAT,
        raw_chat(b'"chat_template_kwargs":{"a":' + b"[" * 100_000),
        None,
    ),
    "invalid UTF-8": (CHAT, raw_chat(b'"user":"\xff\xfe"'), None),
    "invalid UTF-8 in a key": (CHAT, raw_chat(b'"\xff":1'), None),
    "UTF-16": (CHAT, json.dumps(chat()).encode("utf-16"), None),
    "lone surrogate": (CHAT, b'{"messages":[{"role":"user","content":"\\ud800"}]}', None),
    "lone surrogate in a prompt": (COMPLETIONS, b'{"prompt":"a\\udfffb"}', None),
    "temperature NaN": (CHAT, raw_chat(b'"temperature":NaN'), None),
    "temperature 1e999": (CHAT, raw_chat(b'"temperature":1e999'), "temperature"),
    "temperature -Infinity": (CHAT, raw_chat(b'"temperature":-Infinity'), None),
    "temperature true": (CHAT, chat(temperature=True), "temperature"),
    "temperature below": (CHAT, chat(temperature=-0.1), "temperature"),
    "temperature above": (CHAT, chat(temperature=100.1), "temperature"),
    "temperature a word": (CHAT, chat(temperature="hot"), "temperature"),
    "temperature NaN as a word": (CHAT, chat(temperature="nan"), "temperature"),
    "top_p below": (CHAT, chat(top_p=-0.1), "top_p"),
    "top_p above": (CHAT, chat(top_p=1.5), "top_p"),
    "top_k below": (CHAT, chat(top_k=-2), "top_k"),
    "top_k 2**40": (CHAT, chat(top_k=2**40), "top_k"),
    "min_p above": (CHAT, chat(min_p=2), "min_p"),
    "penalty above": (CHAT, chat(presence_penalty=3), "presence_penalty"),
    "repetition 1e-46": (CHAT, chat(repetition_penalty=1e-46), "repetition_penalty"),
    "repetition 0": (CHAT, chat(repetition_penalty=0), "repetition_penalty"),
    "n 0": (CHAT, chat(n=0), "n"),
    "n two thousand million": (CHAT, chat(n=2_000_000_000), "n"),
    "n a float": (CHAT, chat(n=1.5), "n"),
    "seed 2**70": (CHAT, chat(seed=2**70), "seed"),
    "seed -2**70": (CHAT, chat(seed=-(2**70)), "seed"),
    "seed of a million digits": (CHAT, raw_chat(b'"seed":' + b"9" * 1_000_000), "seed"),
    "max_tokens 0": (CHAT, chat(max_tokens=0), "max_tokens"),
    "max_tokens below": (CHAT, chat(max_tokens=-2), "max_tokens"),
    "max_tokens 1.5": (CHAT, chat(max_tokens=1.5), "max_tokens"),
    "max_completion_tokens 0": (CHAT, chat(max_completion_tokens=0), "max_completion_tokens"),
    "min_tokens above max_tokens": (CHAT, chat(max_tokens=1, min_tokens=2), "min_tokens"),
    "no messages": (CHAT, {}, "messages"),
    "empty messages": (CHAT, {"messages": []}, "messages"),
    "messages of which nothing is left": (
        CHAT,
        chat(chat_template_kwargs={"nothing": True}),
        "messages",
    ),
    "messages a string": (CHAT, {"messages": "hi"}, "messages"),
    "message a string": (CHAT, {"messages": ["hi"]}, "messages[0]"),
    "empty role": (CHAT, {"messages": [{"role": "", "content": ""}]}, "messages[0].role"),
    "long role": (CHAT, {"messages": [{"role": "a" * 65, "content": ""}]}, "messages[0].role"),
    "role a number": (CHAT, {"messages": [{"role": 5, "content": ""}]}, "messages[0].role"),
    "no role": (CHAT, {"messages": [{"content": ""}]}, "messages[0].role"),
    "no content": (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
    "content a number": (CHAT, {"messages": [{"role": "user", "content": 5}]}, None),
    "an image": (
        CHAT,
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
            ]
        },
        "messages[0].content[0].type",
    ),
    "10,000 stop strings": (CHAT, chat(stop=["a"] * 10_000), "stop"),
    "long stop string": (CHAT, chat(stop="a" * 10_000), "stop"),
    "stop a number": (CHAT, chat(stop=5), "stop"),
    "stop token id -1": (CHAT, chat(stop_token_ids=[-1]), None),
    "stop token id beyond": (CHAT, chat(stop_token_ids=[258]), "stop_token_ids"),
    "10,000 stop token ids": (CHAT, chat(stop_token_ids=[1] * 10_000), "stop_token_ids"),
    "bias of token -1": (CHAT, chat(logit_bias={"-1": 1}), None),
    "bias of a token beyond": (CHAT, chat(logit_bias={"258": 1}), "logit_bias"),
    "bias of a word": (CHAT, chat(logit_bias={"hello": 1}), None),
    "bias too large": (CHAT, chat(logit_bias={"1": 101}), None),
    "10,000 biases": (CHAT, chat(logit_bias={str(k): 1 for k in range(10_000)}), "logit_bias"),
    "100 bad words": (CHAT, chat(bad_words=["a"] * 100), "bad_words"),
    "a long bad word": (CHAT, chat(bad_words=["a" * 300]), "bad_words[0]"),
    "bad words a string": (CHAT, chat(bad_words="a"), "bad_words"),
    "nothing allowed": (CHAT, chat(allowed_token_ids=[]), "allowed_token_ids"),
    "an allowed token beyond": (CHAT, chat(allowed_token_ids=[258]), "allowed_token_ids"),
    "an allowed token that is a bad word": (
        CHAT,
        chat(allowed_token_ids=[ord("a")], bad_words=["a"]),
        "allowed_token_ids",
    ),
    "an allowed token that min_tokens bans": (
        COMPLETIONS,
        {"prompt": "a", "allowed_token_ids": [5], "stop_token_ids": [5], "min_tokens": 1},
        "allowed_token_ids",
    ),
    "10,000 allowed tokens": (CHAT, chat(allowed_token_ids=[1] * 10_000), "allowed_token_ids"),
    "logprobs without logprobs": (CHAT, chat(top_logprobs=2), "top_logprobs"),
    "too many logprobs": (CHAT, chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    "stream a string": (CHAT, chat(stream="yes"), "stream"),
    "stream options alone": (CHAT, chat(stream_options={"include_usage": True}), "stream_options"),
    "a form of no type": (
        CHAT,
        chat(response_format={"json_schema": {"schema": {}}}),
        "response_format.type",
    ),
    "a form of another type": (
        CHAT,
        chat(response_format={"type": "structural_tag", "structures": []}),
        "response_format.type",
    ),
    "a form without its schema": (
        CHAT,
        chat(response_format={"type": "json_schema", "json_schema": {"type": "object"}}),
        "response_format.json_schema.schema",
    ),
    "a schema that can't be honoured": (
        CHAT,
        chat(
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"not": {"type": "null"}}, "strict": True},
            }
        ),
        "response_format.json_schema.schema",
    ),
    "a tool without a function": (CHAT, chat(tools=[{"type": "function"}]), "tools[0].function"),
    "a tool without a name": (CHAT, chat(tools=[{"function": {"name": ""}}]), None),
    "a tool that is searched": (CHAT, chat(tools=[{"type": "web_search"}]), "tools[0].type"),
    "a tool of text": (
        CHAT,
        chat(tools=[{"type": "custom", "custom": {"name": "f"}}]),
        "tools[0].type",
    ),
    "a tool by force": (CHAT, chat(tool_choice="required"), "tool_choice"),
    "any tool": (CHAT, chat(tools=TOOLS, tool_choice="any"), "tool_choice"),
    "a named tool": (CHAT, chat(tool_choice={"type": "function"}), "tool_choice"),
    "a tool that isn't there": (
        CHAT,
        chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "g"}}),
        "tool_choice",
    ),
    "functions": (CHAT, chat(functions=[{"name": "f"}]), "functions"),
    "a function by force": (CHAT, chat(function_call={"name": "f"}), "function_call"),
    "no thoughts": (CHAT, chat(include_reasoning=False), "include_reasoning"),
    "a budget for thoughts that aren't told from the rest": (
        CHAT,
        chat(thinking_token_budget=0),
        "thinking_token_budget",
    ),
    "a budget below -1": (CHAT, chat(thinking_token_budget=-2), "thinking_token_budget"),
    "no thoughts in a completion": (
        COMPLETIONS,
        {"prompt": "a", "include_reasoning": False},
        "include_reasoning",
    ),
    "audio wanted": (CHAT, chat(modalities=["text", "audio"]), "modalities"),
    "a template from the request": (
        CHAT,
        chat(chat_template_kwargs={"chat_template": "{{ 1 }}"}),
        "messages",
    ),
    "beams": (CHAT, chat(use_beam_search=True), "use_beam_search"),
    "beams of a length": (COMPLETIONS, {"prompt": "a", "length_penalty": 2}, "length_penalty"),
    "an expression that looks ahead": (CHAT, chat(guided_regex="(?=a)"), "guided_regex"),
    "a catastrophic expression": (CHAT, chat(guided_regex="(" * 50_000), "guided_regex"),
    "no grammar": (CHAT, chat(guided_grammar="hello"), "guided_grammar"),
    "a choice of numbers": (CHAT, chat(guided_choice=[1]), "guided_choice[0]"),
    "two forms": (CHAT, chat(guided_regex="a", guided_json={}), "guided_regex"),
    "two forms as one": (
        CHAT,
        chat(structured_outputs={"regex": "a", "json": {}}),
        "structured_outputs",
    ),
    "no form": (CHAT, chat(structured_outputs={"backend": "a"}), "structured_outputs"),
    "a structural tag": (
        CHAT,
        chat(structured_outputs={"structural_tag": "{}"}),
        "structured_outputs.structural_tag",
    ),
    "a form of a completion": (
        COMPLETIONS,
        {"prompt": "a", "structured_outputs": {"json": '{"maxItems": 1000000000}'}},
        "structured_outputs.json",
    ),
    "a schema in 10,000 others": (
        CHAT,
        raw_chat(b'"guided_json":' + b'{"items":' * 10_000 + b"{}" + b"}" * 10_000),
        None,
    ),
    "a schema in 200 others": (
        CHAT,
        raw_chat(b'"guided_json":' + b'{"items":' * 200 + b"{}" + b"}" * 200),
        "guided_json",
    ),
    "references on references": (
        CHAT,
        chat(
            guided_json={
                "$defs": {f"a{k}": {"$ref": f"#/$defs/a{k + 1}"} for k in range(490)},
                "$ref": "#/$defs/a0",
            }
        ),
        "guided_json",
    ),
    "many factors": (
        CHAT,
        chat(
            guided_json={"type": "integer", "multipleOf": 999983, "minimum": 7, "maximum": 10**15}
        ),
        "guided_json",
    ),
    "a billion items": (
        CHAT,
        chat(guided_json={"type": "array", "minItems": 10**9}),
        "guided_json",
    ),
    "a megabyte of choices": (
        COMPLETIONS,
        {"prompt": "a", "guided_choice": [f"choice {k}" for k in range(70_000)]},
        "guided_choice",
    ),
    "another engine's grammar": (CHAT, chat(ebnf="root ::= a"), "ebnf"),
    "a processor of logits": (CHAT, chat(logits_processors=["a.b"]), "logits_processors"),
    "an earlier audio": (
        CHAT,
        {"messages": [{"role": "assistant", "content": "", "audio": {"id": "1"}}]},
        "messages[0].audio",
    ),
    "a thousand and more fields": (CHAT, chat(**{f"x{i}": 1 for i in range(2000)}), None),
    "a template": (CHAT, chat(chat_template="{{ 1 }}"), "chat_template"),
    "no prompt": (COMPLETIONS, {}, "prompt"),
    "empty prompt": (COMPLETIONS, {"prompt": ""}, "prompt"),
    "empty prompts": (COMPLETIONS, {"prompt": []}, "prompt"),
    "an empty prompt of two": (COMPLETIONS, {"prompt": ["a", ""]}, "prompt"),
    "empty list of ids": (COMPLETIONS, {"prompt": [[]]}, "prompt"),
    "mixed prompt": (COMPLETIONS, {"prompt": ["a", 1]}, "prompt"),
    "prompt of null": (COMPLETIONS, {"prompt": [None]}, None),
    "prompt of true": (COMPLETIONS, {"prompt": [True]}, None),
    "id -1": (COMPLETIONS, {"prompt": [-1]}, None),
    "id beyond": (COMPLETIONS, {"prompt": [258]}, "prompt"),
    "id 2**70": (COMPLETIONS, {"prompt": [2**70]}, None),
    "id beyond in a list": (COMPLETIONS, {"prompt": [[1], [1, 258]]}, "prompt"),
    "10,000 prompts": (COMPLETIONS, {"prompt": ["a"] * 10_000}, "prompt"),
    "prompts times n": (COMPLETIONS, {"prompt": ["a"] * 100, "n": 100}, "prompt"),
    "suffix": (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix"),
    "best_of": (COMPLETIONS, {"prompt": "a", "best_of": 3}, "best_of"),
    "no completion tokens": (
        COMPLETIONS,
        {"prompt": "a", "max_completion_tokens": 0},
        "max_completion_tokens",
    ),
    "no tokens": (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, "max_tokens"),
    "tools to tokenize": (
        "/tokenize",
        chat(tools=[{"type": "function"}]),
        "tools[0].function",
    ),
    "a template to tokenize": ("/tokenize", chat(chat_template="x"), "chat_template"),
    "nothing to tokenize": ("/tokenize", {}, "prompt"),
    "both to tokenize": ("/tokenize", {"prompt": "a", **chat()}, "prompt"),
    "detokenize beyond": ("/detokenize", {"tokens": [1, 258]}, "tokens"),
    "detokenize -1": ("/detokenize", {"tokens": [-1]}, None),
}


def content_of(body: Any) -> bytes:
    """A body of the table as it is sent."""
    return body if isinstance(body, bytes) else json.dumps(body).encode()
