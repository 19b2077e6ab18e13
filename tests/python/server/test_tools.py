"""Calls of tools and thoughts over HTTP, as scripted answers have them."""

from __future__ import annotations

import json
import re
from typing import Any

import llguidance
import openai
import pytest

from minisgl.text.formats import AnswerFormats, choose_formats
from minisgl.text.generic_tools import describe_tools
from minisgl.text.grammar_compiler import make_tokenizer
from minisgl.tokenizer import TemplateSource
from tests.python.server.byte_tokenizer import END, TEMPLATE
from tests.python.server.conftest import Server, StartServer, events
from tests.python.server.fake_engine import FakeClient, Script, output, reply

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
OTHER = {"type": "function", "function": {"name": "other"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Bern"}}\n</tool_call>'
OTHER_CALL = '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>'
FORMATS = AnswerFormats("hermes", "qwen3")
NATIVE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for message in messages %}{{ '<turn>' + message.role[0] + ':' }}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.id }}{{ call.function.name }}"
    "{% endfor %}{{ message.tool_call_id or '' }}{% endfor %}"
)


def cut(text: str, sizes: tuple[int, ...]) -> Script:
    """A script that says a text in steps of these many tokens (bytes), over and over."""

    async def script(client: FakeClient, stream: Any) -> None:
        tokens = [*text.encode(), END]
        begin = position = 0
        while begin < len(tokens) and not stream.finished:
            end = begin + sizes[position % len(sizes)]
            step = tokens[begin:end]
            stream.deliver(output(stream, step, "stop" if end >= len(tokens) else ""))
            begin, position = end, position + 1

    return script


async def stream_of(server: Server, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed answer."""
    answer = await server.chat(stream=True, **fields)
    assert answer.status_code == 200, answer.text
    *chunks, done = events(answer.text)
    assert done == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def put_together(chunks: list[dict[str, Any]], index: int = 0) -> tuple[dict[str, Any], str]:
    """A choice's message, and its finish reason."""
    message: dict[str, Any] = {"content": None, "reasoning_content": "", "tool_calls": []}
    finish = ""
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            delta = choice["delta"]
            assert delta.get("reasoning") == delta.get("reasoning_content")
            if delta.get("content"):
                message["content"] = (message["content"] or "") + delta["content"]
            message["reasoning_content"] += delta.get("reasoning_content", "")
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    assert call["index"] == len(message["tool_calls"])
                    message["tool_calls"].append(call["function"])
                else:
                    message["tool_calls"][call["index"]]["arguments"] += call["function"][
                        "arguments"
                    ]
            finish = choice["finish_reason"] or finish
    return message, finish


async def test_a_call_in_a_whole_answer(start_server: StartServer) -> None:
    async with start_server(reply(CALL), formats=FORMATS) as server:
        answer = (await server.chat(tools=[WEATHER])).json()
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert re.fullmatch(r"call_[0-9a-f]{24}", call["id"])
    assert call["type"] == "function"
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"place": "Bern"}


async def test_a_call_as_the_sdk_streams_it(start_server: StartServer) -> None:
    async with start_server(reply("Let me see. " + CALL), formats=FORMATS) as server:
        messages: Any = [{"role": "user", "content": "hi"}]
        tools: Any = [WEATHER]
        async with (
            server.openai() as client,
            client.chat.completions.stream(model="alias", messages=messages, tools=tools) as stream,
        ):
            done = [
                event
                async for event in stream
                if event.type == "tool_calls.function.arguments.done"
            ]
            completion = await stream.get_final_completion()
    assert [(event.name, json.loads(event.arguments)) for event in done] == [
        ("weather", {"place": "Bern"})
    ]
    choice = completion.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    assert choice.message.tool_calls is not None
    assert choice.message.tool_calls[0].type == "function"


async def test_first_chunk_of_a_call_has_its_id_and_the_others_pieces(
    start_server: StartServer,
) -> None:
    async with start_server(reply(CALL), formats=FORMATS) as server:
        chunks = await stream_of(server, tools=[WEATHER])
    role, first, *others = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert role == {"role": "assistant", "content": None}
    (call,) = first["tool_calls"]
    assert call.pop("id").startswith("call_")
    assert call == {
        "index": 0,
        "type": "function",
        "function": {"name": "weather", "arguments": ""},
    }
    *pieces, last = others
    assert pieces
    assert last == {}
    assert all(piece["tool_calls"][0].keys() == {"index", "function"} for piece in pieces)


@pytest.mark.parametrize("sizes", [(1,), (2,), (3, 1), (7,), (64,), (1000,)])
async def test_deltas_put_together_are_the_whole_answer(
    start_server: StartServer, sizes: tuple[int, ...]
) -> None:
    said = f"<think>Wörter</think>Sô: {CALL} and\n{OTHER_CALL} end"
    async with start_server(cut(said, sizes), formats=FORMATS) as server:
        fields = {"tools": [WEATHER, OTHER], "stream_options": {"include_usage": True}}
        chunks = await stream_of(server, **fields)
        del fields["stream_options"]
        whole = (await server.chat(**fields)).json()
    message, finish = put_together(chunks)
    choice = whole["choices"][0]
    assert finish == choice["finish_reason"] == "tool_calls"
    assert message["reasoning_content"] == choice["message"]["reasoning_content"] == "Wörter"
    assert message["content"] == choice["message"]["content"]
    assert message["tool_calls"] == [call["function"] for call in choice["message"]["tool_calls"]]
    assert len(message["tool_calls"]) == 2
    thought = len("<think>Wörter</think>".encode())  # its marks count
    assert chunks[-1]["usage"] == whole["usage"]
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": thought}


async def test_tokens_of_thoughts_are_counted_though_stop_strings_hold_them(
    start_server: StartServer,
) -> None:
    said = "<think>one two</think>three STOP four"
    for sizes in ((1,), (5,), (100,)):
        async with start_server(cut(said, sizes), formats=FORMATS) as server:
            answer = (await server.chat(stop=["k>thrice", " STOP"])).json()
        choice, details = answer["choices"][0], answer["usage"]["completion_tokens_details"]
        assert choice["message"]["content"] == "three"
        assert details == {"reasoning_tokens": len("<think>one two</think>")}


async def test_thoughts_may_be_left_out(start_server: StartServer) -> None:
    async with start_server(reply("<think>a</think>b"), formats=FORMATS) as server:
        whole = (await server.chat(include_reasoning=False)).json()
        chunks = await stream_of(server, include_reasoning=False)
        shown = (await server.chat()).json()
    assert whole["choices"][0]["message"].get("reasoning_content") is None
    assert put_together(chunks)[0]["reasoning_content"] == ""
    assert put_together(chunks)[0]["content"] == "b"
    assert shown["choices"][0]["message"]["reasoning"] == "a"
    assert shown["choices"][0]["message"]["tool_calls"] == []


async def test_a_budget_of_thoughts_comes_to_the_engine_with_what_closes_them(
    start_server: StartServer,
) -> None:
    form = {"type": "json_object"}
    async with start_server(reply("<think>a</think>b"), formats=FORMATS) as server:
        for fields in ({"thinking_token_budget": 7}, {}, {"thinking_token_budget": -1}):
            assert (await server.chat(**fields)).status_code == 200
        # An answer of a given form may have a thought before it, unless that is switched off.
        for fields in ({}, {"chat_template_kwargs": {"enable_thinking": False}}):
            fields = {"thinking_token_budget": 7, "response_format": form, **fields}
            assert (await server.chat(**fields)).status_code == 200
        limited, unlimited, any_number, formed, at_once = [
            one.request.params for one in server.engine.submitted
        ]
    assert formed.thought == limited.thought
    assert allows(formed.grammar, "<think>a\n</think>\n\n{}")
    assert limited.thinking_token_budget == 7
    assert limited.thought is not None
    assert limited.thought.closings == [list(b"\n</think>\n\n")]
    assert limited.thought.thoughts[0] == -1  # the prompt begins no thought
    for params in (unlimited, any_number, at_once):
        assert params.thought is None
        assert not params.limits_thoughts


async def test_thoughts_that_are_messages_have_no_budget(start_server: StartServer) -> None:
    formats = AnswerFormats("openai", "gpt_oss")
    async with start_server(reply("a"), formats=formats) as server:
        refused = await server.chat(thinking_token_budget=7)
        assert (await server.chat(thinking_token_budget=-1)).status_code == 200
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "thinking_token_budget")
    assert "gpt_oss" in error["message"]


async def test_log_probabilities_and_token_ids_are_those_of_the_whole_text(
    start_server: StartServer,
) -> None:
    said = f"<think>a</think>b{CALL}"
    async with start_server(reply(said), formats=FORMATS) as server:
        fields = {"tools": [WEATHER], "logprobs": True, "return_token_ids": True}
        whole = (await server.chat(**fields)).json()["choices"][0]
        chunks = [chunk["choices"][0] for chunk in await stream_of(server, **fields)]
    assert whole["token_ids"] == [*said.encode(), END]
    entries = [entry["token"] for entry in whole["logprobs"]["content"]]
    assert "".join(entries) == said
    streamed = [
        one for choice in chunks if choice["logprobs"] for one in choice["logprobs"]["content"]
    ]
    assert [entry["token"] for entry in streamed] == entries
    assert [i for choice in chunks for i in choice.get("token_ids", ())] == whole["token_ids"]


async def test_one_call_at_most_where_calls_arent_parallel(start_server: StartServer) -> None:
    async with start_server(
        cut(CALL + "\n" + OTHER_CALL + "more", (1,)), formats=FORMATS
    ) as server:
        fields = {"tools": [WEATHER, OTHER], "parallel_tool_calls": False}
        choice = (await server.chat(**fields)).json()["choices"][0]
        message, finish = put_together(await stream_of(server, **fields))
    assert finish == choice["finish_reason"] == "tool_calls"
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]
    assert [call["name"] for call in message["tool_calls"]] == ["weather"]
    assert server.state.metrics.finished["stop"] == 2
    assert not server.engine.live


async def test_every_choice_has_its_calls(start_server: StartServer) -> None:
    async def script(client: FakeClient, stream: Any) -> None:
        said = (CALL, "No call.", OTHER_CALL)[stream.id]
        await reply(said)(client, stream)

    async with start_server(script, formats=FORMATS) as server:
        chunks = await stream_of(server, n=3, tools=[WEATHER, OTHER])
    finishes = [put_together(chunks, index)[1] for index in range(3)]
    names = [
        [call["name"] for call in put_together(chunks, index)[0]["tool_calls"]]
        for index in range(3)
    ]
    assert finishes == ["tool_calls", "stop", "tool_calls"]
    assert names == [["weather"], [], ["other"]]


async def test_an_answer_that_is_cut_says_so(start_server: StartServer) -> None:
    async with start_server(reply(CALL + OTHER_CALL), formats=FORMATS) as server:
        answer = await server.chat(tools=[WEATHER], max_tokens=len(CALL) + 3)
    assert answer.json()["choices"][0]["finish_reason"] == "length"


async def test_without_tools_nothing_is_a_call(start_server: StartServer) -> None:
    async with start_server(reply(CALL), formats=AnswerFormats("hermes")) as server:
        for fields in ({}, {"tools": [WEATHER], "tool_choice": "none"}, {"tools": []}):
            choice = (await server.chat(**fields)).json()["choices"][0]
            assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")


NAMED = {"type": "function", "function": {"name": "weather"}}
STRICT = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
JSON_FORM = {"type": "json_object"}


async def test_what_cant_be_enforced_is_refused(start_server: StartServer, server: Server) -> None:
    async with start_server(formats=FORMATS) as able:
        bad = {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}
        answer = await able.chat(tools=[WEATHER], response_format=bad)
        param = "response_format.json_schema.schema"
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        strict_without_calls = await able.chat(tools=[STRICT], tool_choice="none")
        assert strict_without_calls.status_code == 200
    answer = await server.chat(tools=[WEATHER])  # a server that reads no calls
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
    odd = {"type": "function", "function": {"name": "a b", "strict": True}}
    async with start_server(formats=AnswerFormats("pythonic")) as able:  # Python has no such name
        answer = await able.chat(tools=[odd], tool_choice="required")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tool_choice")
        answer = await able.chat(tools=[odd])
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
    async with start_server(formats=AnswerFormats("json")) as able:  # calls are JSON as all else is
        answer = await able.chat(tools=[WEATHER], response_format=JSON_FORM)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
        assert "this form of the answer" in answer.json()["error"]["message"]
    email = {"type": "object", "properties": {"to": {"type": "string", "format": "regex"}}}
    mail = {"type": "function", "function": {"name": "mail", "parameters": email}}
    async with start_server(formats=AnswerFormats("qwen3_coder")) as able:
        answer = await able.chat(tools=[mail], tool_choice="required")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
        assert "tool 'mail': the parameter 'to' has the 'format'" in answer.text.lower()


def allows(grammar: str, text: str) -> bool:
    """Whether a grammar allows a text, and its end."""
    matcher = llguidance.LLMatcher(make_tokenizer(), grammar)
    return bool(matcher.try_consume_tokens(list(text.encode())) == len(text)) and bool(
        matcher.is_accepting()
    )


async def test_calls_that_have_to_be_made_are_held_to_their_form(start_server: StartServer) -> None:
    reference = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "required": ["a"]}
    reference |= {"additionalProperties": False, "$defs": {"A": {"type": "integer"}}}
    number = {"type": "function", "function": {"name": "number", "parameters": reference}}
    tools = [STRICT, OTHER, number]
    allowed = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [OTHER]},
    }
    good = '<tool_call>\n{"name": "number", "arguments": {"a": 1}}\n</tool_call>'
    async with start_server(reply(CALL), formats=FORMATS) as server:
        for choice, texts, not_allowed in (
            ("required", (CALL, OTHER_CALL, good, CALL + "\n" + OTHER_CALL), ("Hello",)),
            (NAMED, (CALL,), (OTHER_CALL, good)),
            (allowed, (OTHER_CALL,), (CALL, OTHER_CALL.replace("{}", '{"a": 1}'))),
        ):
            answer = await server.chat(tools=tools, tool_choice=choice)
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"
            grammar = server.engine.submitted[-1].request.params.grammar
            assert all(allows(grammar, text) for text in texts)
            assert not any(allows(grammar, text) for text in not_allowed)
        assert not allows(grammar, good.replace("1", '"1"'))
        await server.chat(tools=tools, tool_choice="required", parallel_tool_calls=False)
        grammar = server.engine.submitted[-1].request.params.grammar
        assert allows(grammar, CALL)
        assert not allows(grammar, CALL + "\n" + OTHER_CALL)


async def test_strict_calls_are_held_to_their_form_wherever_they_stand(
    start_server: StartServer,
) -> None:
    wrong = CALL.replace("Bern", "Bern\\x")
    async with start_server(reply("Hello"), formats=FORMATS) as server:
        fields = {"tools": [STRICT, OTHER]}
        answer = await server.chat(**fields)
        assert answer.json()["choices"][0]["finish_reason"] == "stop"
        await server.chat(**fields, parallel_tool_calls=False)
        many, one = (stream.request.params.grammar for stream in server.engine.submitted)
    for text in ("Hello <tool", f"<think>a</think>b {CALL} and {OTHER_CALL}\n{CALL}.", CALL):
        assert allows(many, text)
        assert allows(one, text) == (text.count(CALL) < 2)
    for text in (f"Hello {wrong}", wrong, CALL.replace('"weather"', '"whether"'), "<tool_call>"):
        assert not allows(many, text)
    assert allows(many, OTHER_CALL.replace("{}", '{"any": 1}'))  # which isn't strict


async def test_a_call_that_has_to_be_made_ends_a_thought_first(start_server: StartServer) -> None:
    template = "{{ messages[0].content }}<think>\n"
    async with start_server(
        reply("</think>\n\n" + CALL), formats=FORMATS, template=template
    ) as server:
        fields = {"tools": [WEATHER], "tool_choice": "required"}
        choice = (await server.chat(**fields)).json()["choices"][0]
    grammar = server.engine.submitted[-1].request.params.grammar
    assert allows(grammar, "</think>\n\n" + CALL)
    assert not allows(grammar, CALL)
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["message"]["content"] is None


async def test_an_answer_of_a_form_comes_behind_its_thought(start_server: StartServer) -> None:
    template = "{{ messages[0].content }}{{ '<think>\n' if enable_thinking is not false }}"
    form = '{"a": "<tool_call></think>"}'
    async with start_server(
        cut("so</think>\n\n" + form, (3,)), formats=FORMATS, template=template
    ) as server:
        choice = (await server.chat(response_format=JSON_FORM)).json()["choices"][0]
        message, finish = put_together(await stream_of(server, response_format=JSON_FORM))
        grammar = server.engine.submitted[-1].request.params.grammar
        assert (message["reasoning_content"], message["content"], finish) == ("so", form, "stop")
        assert choice["message"]["content"] == form
        assert choice["message"]["reasoning"] == "so"
        assert allows(grammar, "</think>{}")
        assert not allows(grammar, "{}")
        off = {"response_format": JSON_FORM, "chat_template_kwargs": {"enable_thinking": False}}
        answer = (await server.chat(**off)).json()  # it hasn't a thought, whatever it says
        assert answer["choices"][0]["message"]["content"] == "so</think>\n\n" + form
        assert allows(server.engine.submitted[-1].request.params.grammar, "{}")


@pytest.mark.parametrize("sizes", [(1,), (5, 2), (1000,)])
async def test_tools_beside_a_form_of_the_answer(
    start_server: StartServer, sizes: tuple[int, ...]
) -> None:
    form = '{"a": "<tool_call>{}</tool_call>"}'
    answers = (form, f"<think>a</think>\n{CALL}\n{OTHER_CALL}", CALL)

    async def script(client: FakeClient, stream: Any) -> None:
        await cut(answers[stream.id % 3], sizes)(client, stream)

    fields: dict[str, Any] = {"tools": [STRICT, OTHER], "response_format": JSON_FORM, "n": 3}
    async with start_server(script, formats=FORMATS) as server:
        chunks = await stream_of(server, **fields)
        whole = (await server.chat(**fields)).json()["choices"]
        grammar = server.engine.submitted[-1].request.params.grammar
        await server.chat(**{**fields, "n": 1}, tool_choice="none")
        form_alone = server.engine.submitted[-1].request.params.grammar
        await server.chat(**{**fields, "n": 1}, tool_choice="required")
        calls_alone = server.engine.submitted[-1].request.params.grammar
    for index, (names, finish) in enumerate(
        ([[], "stop"], [["weather", "other"], "tool_calls"], [["weather"], "tool_calls"])
    ):
        message, streamed_finish = put_together(chunks, index)
        assert streamed_finish == whole[index]["finish_reason"] == finish
        assert [call["name"] for call in message["tool_calls"]] == names
        assert message["content"] == whole[index]["message"]["content"]
        assert message["content"] == (None if names else form)
    for text in (form, CALL, f"{CALL}\n{OTHER_CALL}", f"<think>{CALL}</think>\n\n{form}"):
        assert allows(grammar, text)
        assert allows(form_alone, text) == text.endswith(form)
        assert allows(calls_alone, text) == (not text.endswith(form))
    for text in ("Hello", form + CALL, CALL.replace('"Bern"', "1"), f"<think>{form}"):
        assert not allows(grammar, text)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        (
            "qwen3_coder",
            "<tool_call>\n<function=weather>\n<parameter=place>\nBern\n</parameter>\n"
            "</function>\n</tool_call>",
        ),
        ("pythonic", '[weather(place="Bern")]'),
    ],
)
async def test_arguments_one_by_one_beside_a_form_of_the_answer(
    start_server: StartServer, name: str, call: str
) -> None:
    async with start_server(reply(call), formats=AnswerFormats(name)) as server:
        answer = await server.chat(tools=[WEATHER], response_format=JSON_FORM)
        grammar = server.engine.submitted[-1].request.params.grammar
    (said,) = answer.json()["choices"][0]["message"]["tool_calls"]
    assert json.loads(said["function"]["arguments"]) == {"place": "Bern"}
    assert allows(grammar, call)
    assert allows(grammar, "{}")


async def test_the_template_is_given_the_tools_that_are_allowed(start_server: StartServer) -> None:
    allowed = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [OTHER]},
    }
    async with start_server(formats=FORMATS, template=NATIVE, max_model_len=900) as server:
        await server.chat(tools=[WEATHER, OTHER])
        await server.chat(tools=[WEATHER, OTHER], tool_choice=allowed)
        await server.chat(tools=[WEATHER], tool_choice="none")
        prompts = [prompt_of(server, number) for number in range(3)]
        body = {"messages": [{"role": "user", "content": "hi"}], "tools": [WEATHER, OTHER]}
        counted = (await server.http.post("/tokenize", json=body)).json()["count"]
        assert counted == len(server.engine.submitted[0].request.prompt)
    assert json.dumps(WEATHER) in prompts[0]
    assert '"name": "other", "parameters": {"type": "object", "properties": {}}' in prompts[0]
    assert "weather" not in prompts[1]
    assert "other" in prompts[1]
    assert "weather" not in prompts[2]


async def test_ids_of_nine_characters_where_the_model_knows_no_others(
    start_server: StartServer,
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "x", "tool_call_id": "call_1"},
    ]
    formats = AnswerFormats("mistral")
    assert re.fullmatch(r"[A-Za-z0-9]{9}", formats.new_id())
    async with start_server(formats=formats, template=NATIVE, max_model_len=900) as server:
        body = {"messages": messages, "tools": [WEATHER]}
        answer = await server.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        asked, result = re.findall(r"[0-9a-f]{9}", prompt_of(server, 0))
    assert asked == result


async def test_a_template_without_tools_gets_them_in_its_system_message(
    start_server: StartServer,
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "sun", "tool_call_id": "1"},
        {"role": "tool", "content": "rain", "tool_call_id": "1"},
    ]
    formats = choose_formats("auto", "auto", TemplateSource({"default": TEMPLATE}))
    assert formats == AnswerFormats("hermes", None, generic=True)
    async with start_server(formats=formats, max_model_len=2000) as server:
        body = {"messages": messages, "tools": [WEATHER]}
        answer = await server.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        prompt = prompt_of(server, 0)
    written = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
    results = "<tool_response>\nsun\n</tool_response>\n<tool_response>\nrain\n</tool_response>"
    assert prompt.startswith("s:Be brief.\n\n")
    assert json.dumps(WEATHER) in prompt
    assert f"u:hi\na:{written}\n{written}\nu:{results}\na:" in prompt


def test_tools_without_a_system_message() -> None:
    described = describe_tools([{"role": "user", "content": "hi"}], [WEATHER])
    assert [message["role"] for message in described] == ["system", "user"]
    assert described[0]["content"].count('"weather"') == 1


def test_formats_are_chosen_by_name_or_by_the_template() -> None:
    native = TemplateSource({"default": "no", "tool_use": "{{ tools }} <tool_call> <think>"})
    chosen = choose_formats("auto", "auto", native)
    assert chosen.tools == "hermes"
    assert chosen.reasoning is not None
    assert not chosen.generic
    assert choose_formats("none", "none", native) == AnswerFormats()
    assert choose_formats("mistral", "none", native) == AnswerFormats("mistral")
    assert choose_formats("auto", "auto", None) == AnswerFormats()


async def test_the_sdk_reads_thoughts(start_server: StartServer) -> None:
    async with start_server(reply("<think>a</think>b"), formats=FORMATS) as server:
        client: openai.AsyncOpenAI = server.openai()
        async with client:
            answer = await client.chat.completions.create(
                model="alias", messages=[{"role": "user", "content": "hi"}]
            )
    message = answer.choices[0].message
    assert message.content == "b"
    assert message.model_extra is not None
    assert message.model_extra["reasoning_content"] == "a"
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == len("<think>a</think>")


def prompt_of(server: Server, number: int) -> str:
    """The prompt of a request that was submitted, without special tokens."""
    ids = server.engine.submitted[number].request.prompt
    return bytes(token for token in ids if token < 256).decode()
