"""/api/chat and /api/generate: Ollama's API, as its clients see it."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest

from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import Output
from minisgl.text.formats import AnswerFormats
from minisgl.tokenizer.fill_in_middle import FillInMiddle
from tests.python.server.bad_requests import content_of
from tests.python.server.byte_tokenizer import END, TURN
from tests.python.server.conftest import MODEL, Server, StartServer, prompt
from tests.python.server.fake_engine import FakeClient, endless, output, reply, taken
from tests.python.server.ollama_bad_requests import OLLAMA_BAD_REQUESTS
from tests.python.server.test_response_tools import ANSWER, CALL, TEMPLATE, in_turn
from tests.python.waiting import until

FORMATS = AnswerFormats("hermes", "qwen3")
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "The time in a zone.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
    },
}
ASK = [{"role": "user", "content": "hi"}]
FIGURES = {
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
}


def chat(server: Server, messages: Any = None, **fields: Any) -> Any:
    body = {"model": MODEL, "messages": messages or ASK, **fields}
    return server.http.post("/api/chat", json=body)


def generate(server: Server, prompt: str = "hi", **fields: Any) -> Any:
    return server.http.post("/api/generate", json={"model": MODEL, "prompt": prompt, **fields})


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    """The lines of a stream."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text.endswith("\n")
    found = [json.loads(line) for line in answer.text[:-1].split("\n")]
    assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]
    return found


def joined(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What the lines of a stream come to: the object of the same answer without a stream."""
    whole: dict[str, Any] = {}
    for line in found:
        for name, value in line.items():
            if name in ("message", "response", "thinking", "logprobs"):
                whole[name] = _joined(whole.get(name), value)
            else:
                whole[name] = value
    return whole


def _joined(before: Any, value: Any) -> Any:
    if isinstance(value, dict):
        both = dict(before or {})
        for name, part in value.items():
            both[name] = part if name == "role" else _joined(both.get(name), part)
        return both
    return value if before is None else before + value


def without_times(answer: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in answer.items()
        if name != "created_at" and not name.endswith("_duration")
    }


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_lines_and_figures(start_server: StartServer, path: str) -> None:
    body = {"model": MODEL, "messages": ASK} if path == "/api/chat" else {"prompt": "hi"}
    async with start_server(reply("Hello", delay=0.002)) as server:
        found = lines(await server.http.post(path, json=body))
    *parts, last = found
    assert len(parts) > 1
    assert set(last) - {"message", "response"} == FIGURES | {
        "model",
        "created_at",
        "done",
        "done_reason",
    }
    assert all(set(part) & FIGURES == set() for part in parts)
    assert (last["model"], last["done_reason"]) == (MODEL, "stop")
    assert (last["prompt_eval_count"], last["eval_count"]) == (9, 6)
    spans = [last[f"{name}_duration"] for name in ("load", "prompt_eval", "eval")]
    assert all(type(span) is int and span > 0 for span in spans)
    assert abs(sum(spans) - last["total_duration"]) <= 3  # nanoseconds, each rounded
    assert last["eval_duration"] > 5_000_000  # five more tokens, each after 2 ms
    said = [line.get("message", line) for line in found]
    key = "content" if path == "/api/chat" else "response"
    assert "".join(part[key] for part in said) == "Hello"
    assert said[-1][key] == ""


ANSWERS = {
    "words": "Hello",
    "a thought, words, a call": ANSWER,
    "two calls with words around them": f"a {CALL} b {CALL} c",
    "a call without arguments": '<tool_call>\n{"name": "clock"}\n</tool_call>',
    "arguments over lines": CALL.replace('{"zone": "UTC"}', '{\n "zone":\n\t"U\\nTC", "n": 1e400}'),
    "arguments that are none": CALL.replace('{"zone": "UTC"}', "5"),
    "arguments that aren't JSON": CALL.replace('"UTC"', "[nope]") + "c",
    "what looks like a call": "<tool_call>\n{nothing",
    "characters of several bytes": "<think>\nä€\n</think>\n\n𝄞" + CALL.replace("UTC", "Zürich"),
    "nothing": "",
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_a_stream_says_what_the_whole_answer_says(
    start_server: StartServer, name: str
) -> None:
    text = ANSWERS[name]
    logprobs = {"logprobs": True, "top_logprobs": 2}
    lengths = [-1, *range(7, len(text.encode()), 29)]
    async with start_server(  # a delay, so that each token comes alone
        reply(text, delay=1e-9), formats=FORMATS, template=TEMPLATE, max_model_len=2048
    ) as server:
        for ask, length, fields in (
            (chat, -1, {}),
            *((chat, length, {"tools": [CLOCK], **logprobs}) for length in lengths),
            (generate, lengths[-1], logprobs),
        ):
            asked = {"options": {"num_predict": length}, **fields}
            streamed = joined(lines(await ask(server, **asked)))
            whole = (await ask(server, stream=False, **asked)).json()
            for answer in (streamed, whole):  # each answer's calls have ids of their own
                for call in answer.get("message", {}).get("tool_calls", []):
                    assert call.pop("id").startswith("call_")
            assert without_times(streamed) == without_times(whole)


async def test_calls_are_whole_objects(start_server: StartServer) -> None:
    script = reply("<think>\nhm\n</think>\n\nSo. " + CALL + CALL.replace("UTC", "Zürich"))
    async with start_server(
        script, formats=FORMATS, template=TEMPLATE, max_model_len=2048
    ) as server:
        found = lines(await chat(server, tools=[CLOCK]))
        message = joined(found)["message"]
        assert (message["role"], message["thinking"].strip()) == ("assistant", "hm")
        assert message["content"].strip() == "So."
        functions = [call["function"] for call in message["tool_calls"]]
        assert functions == [
            {"index": 0, "name": "clock", "arguments": {"zone": "UTC"}},
            {"index": 1, "name": "clock", "arguments": {"zone": "Zürich"}},
        ]
        assert found[-1]["done_reason"] == "stop"


async def test_a_call_that_is_no_object_is_shown_as_text(start_server: StartServer) -> None:
    odd = CALL.replace('"UTC"', "[nope]")
    async with start_server(
        in_turn(CALL, odd), formats=FORMATS, template=TEMPLATE, max_model_len=2048
    ) as server:
        cut = CALL.index('"UTC') + 3
        answer = await chat(server, tools=[CLOCK], stream=False, options={"num_predict": cut})
        message = answer.json()["message"]
        assert answer.json()["done_reason"] == "length"
        assert "tool_calls" not in message
        assert message["content"] == '{"name": "clock", "arguments": {"zone": "UT'
        message = (await chat(server, tools=[CLOCK], stream=False)).json()["message"]
        assert "tool_calls" not in message
        assert message["content"] == '{"name": "clock", "arguments": {"zone": [nope]}}'


async def test_a_conversation_with_calls(start_server: StartServer) -> None:
    template = TEMPLATE.replace(
        "{{ call.function.name }}", "{{ call.id }}={{ call.function.name }}"
    ).replace(
        "{{ message.content or '' }}",
        "{{ message.content or '' }}{{ message.tool_call_id }}/{{ message.name }}",
    )

    def call(name: str, **fields: Any) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": {"a": 1}}, **fields}

    messages: list[dict[str, Any]] = [
        *ASK,
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [call("f"), call("g"), call("f"), call("h", id="mine")],
        },
        {"role": "tool", "content": "1", "tool_name": "g"},
        {"role": "tool", "content": "2", "tool_name": "f"},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4", "tool_call_id": "mine"},
        {"role": "tool", "content": "5", "tool_name": "k"},
    ]
    async with start_server(
        reply("Hello"), formats=FORMATS, template=template, max_model_len=2048
    ) as server:
        answer = await chat(server, messages, tools=[CLOCK], stream=False)
        assert answer.status_code == 200, answer.text
        shown = prompt(server)
        assert all(call in shown for call in ("call_0=f", "call_1=g", "call_2=f"))
        assert "a:hm|" in shown
        for result in ("1call_1/g", "2call_0/f", "3call_2/f", "4mine/h", "5/k"):
            assert f"t:|{result}\n" in shown.replace("None", "")
        assert shown.startswith("clock;")


async def test_options_reach_the_engine(server: Server) -> None:
    options = {
        "temperature": 0.5,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.1,
        "seed": 7,
        "num_predict": 3,
        "stop": ["lo"],
        "repeat_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "num_ctx": 10**9,
        "num_gpu": 99,
        "mirostat": 0,
        "repeat_last_n": 64,
        "future": 1,
    }
    for asked in (chat(server, options=options), generate(server, raw=True, options=options)):
        answer = await asked
        assert answer.status_code == 200, answer.text
        params = server.engine.submitted[-1].request.params
        assert (params.temperature, params.top_k, params.top_p) == (0.5, 5, 0.9)
        assert (params.min_p, params.seed, params.max_tokens) == (0.1, 7, 3)
        assert params.repetition_penalty == 1.5
        assert (params.presence_penalty, params.frequency_penalty) == (0.5, 0.25)
    for length, room in ((-1, 247), (-2, 247), (0, 247), (1000, 247), (1, 1)):
        await chat(server, options={"num_predict": length})
        assert server.engine.submitted[-1].request.params.max_tokens == room
    await chat(server, options={**options, "repeat_last_n": 0})
    params = server.engine.submitted[-1].request.params
    assert params.repetition_penalty == 1.0
    assert (params.presence_penalty, params.frequency_penalty) == (0.0, 0.0)
    answer = await chat(server, options={"stop": "l"}, stream=False)
    assert answer.json()["message"]["content"] == "He"
    assert answer.json()["done_reason"] == "stop"


async def test_no_tokens_are_penalized_against_what_the_model_publishes(
    start_server: StartServer,
) -> None:
    published = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    async with start_server(sampling_defaults=published) as server:
        for options, penalties in (({}, (1.2, 0.5, 0.25)), ({"repeat_last_n": 0}, (1.0, 0.0, 0.0))):
            await chat(server, options=options)
            params = server.engine.submitted[-1].request.params
            found = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
            assert found == penalties


async def test_thoughts_while_the_model_loads(server: Server) -> None:
    server.engine.state = "starting"
    for asked in (chat(server, think=True), generate(server, think=True)):
        assert (await asked).status_code == 503


async def test_thoughts(start_server: StartServer) -> None:
    template = TEMPLATE + "{{ enable_thinking }},{{ thinking }},{{ reasoning_effort }}"
    async with start_server(
        reply(ANSWER), formats=FORMATS, template=template, max_model_len=2048
    ) as server:
        for think, variables in (
            (None, ",,"),
            (True, "True,True,"),
            (False, "False,False,"),
            ("low", "True,True,low"),
            ("high", "True,True,high"),
            ("max", "True,True,high"),
        ):
            answer = (await chat(server, think=think, stream=False)).json()
            assert prompt(server).endswith("a:" + variables)
            assert ("thinking" in answer["message"]) == (think is not False)
            assert "<think>" not in answer["message"]["content"]
            answer = (await generate(server, think=think, stream=False)).json()
            assert ("thinking" in answer) == (think is not False)


async def test_forms(server: Server) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for form in ("json", schema):
        for asked in (
            chat(server, format=form),
            generate(server, format=form),
            generate(server, format=form, raw=True),
        ):
            assert (await asked).status_code == 200
            assert '"object"' in (server.engine.submitted[-1].request.params.grammar or "")
    assert (await chat(server, format="")).status_code == 200
    assert server.engine.submitted[-1].request.params.grammar is None
    refused = await chat(server, format={"not": {}})
    assert refused.status_code == 400
    assert "'not'" in refused.json()["error"]


async def test_a_thought_before_a_form(start_server: StartServer) -> None:
    pytest.importorskip("llguidance")
    async with start_server(
        reply('<think>\nhm\n</think>\n\n{"a": 1}'),
        formats=FORMATS,
        template=TEMPLATE,
        max_model_len=2048,
    ) as server:
        for tools in ([], [CLOCK]):
            message = joined(lines(await chat(server, format="json", tools=tools)))["message"]
            assert (message["thinking"].strip(), message["content"]) == ("hm", '{"a": 1}')
            assert server.engine.submitted[-1].request.params.grammar is not None


async def test_prompts_of_generate(server: Server) -> None:
    for fields, read in (
        ({}, "u:hi\na:"),
        ({"system": "Be kind."}, "s:Be kind.\nu:hi\na:"),
        ({"raw": True}, "hi"),
    ):
        assert (await generate(server, **fields)).status_code == 200
        assert prompt(server) == read
    for fields, name in (
        ({"raw": True, "system": "a"}, "system"),
        ({"raw": True, "think": True}, "think"),
        ({"suffix": "a"}, "suffix"),  # this model has no tokens for that
        ({"suffix": "a", "system": "a"}, "system"),
        ({"context": [1, 2]}, "context"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"images": ["aGk="]}, "images"),
    ):
        refused = await generate(server, **fields)
        assert refused.status_code == 400
        assert f"'{name}'" in refused.json()["error"]


async def test_a_text_with_a_gap(server: Server) -> None:
    assert server.state.text is not None
    server.state.text.tokenizer.fill_in_middle = FillInMiddle("<turn>", "<end>", "<turn>")
    answer = await generate(server, "ab", suffix="cd", stream=False)
    assert answer.json()["response"] == "Hello"
    assert server.engine.submitted[-1].request.prompt == [TURN, *b"ab", END, *b"cd", TURN]
    shown = (await server.http.post("/api/show", json={})).json()
    assert "insert" in shown["capabilities"]


@pytest.mark.parametrize(
    ("keep_alive", "reason"),
    [
        (None, "load"),
        ("5m", "load"),
        (-1, "load"),
        ("-1m", "load"),
        (0, "unload"),
        ("0s", "unload"),
    ],
)
async def test_a_request_for_nothing(server: Server, keep_alive: Any, reason: str) -> None:
    for path, fields in (
        ("/api/chat", {"messages": []}),
        ("/api/chat", {}),
        ("/api/generate", {"prompt": ""}),
        ("/api/generate", {}),
    ):
        body = {"model": MODEL, "keep_alive": keep_alive, **fields}
        answer = await server.http.post(path, json=body)
        assert answer.status_code == 200
        said = answer.json()
        assert (said["done"], said["done_reason"], said["model"]) == (True, reason, MODEL)
        if path == "/api/chat":
            assert said["message"] == {"role": "assistant", "content": ""}
        else:
            assert said["response"] == ""
    assert server.engine.submitted == []
    server.engine.state = "restarting"
    assert (await server.http.post("/api/generate", json={})).status_code == 503


async def test_names_of_models(server: Server) -> None:
    for name in (MODEL, MODEL + ":latest", "alias", "alias:latest"):
        assert (await chat(server, model=name, stream=False)).json()["model"] == name
    for name in ("other", MODEL + ":8b", "alias:latest:latest", ":latest"):
        for path in ("/api/chat", "/api/generate", "/api/show"):
            refused = await server.http.post(path, json={"model": name})
            assert refused.status_code == 404
            assert set(refused.json()) == {"error"}
            assert repr(name.removesuffix(":latest") or ":latest") in refused.json()["error"]


async def test_errors_have_this_apis_shape(start_server: StartServer) -> None:
    async with start_server(endless(), api_key=("key",), max_live=1) as server:
        key = {"authorization": "Bearer key"}
        for method, path, content, headers, status in (
            ("POST", "/api/chat", "{}", {}, 401),
            ("GET", "/api/tags", "", {}, 401),
            ("GET", "/api/ps", "", {}, 401),
            ("POST", "/api/show", "{}", {}, 401),
            ("POST", "/api/pull", "{}", {}, 401),
            ("POST", "/api/chat", "{", key, 400),
            ("POST", "/api/chat", '{"messages":[{"role":5}]}', key, 400),
            ("GET", "/api/chat", "", key, 405),
            ("POST", "/api/nothing", "", key, 404),
        ):
            answer = await server.http.request(method, path, content=content, headers=headers)
            assert (answer.status_code, set(answer.json())) == (status, {"error"}), path
            assert isinstance(answer.json()["error"], str)
        server.http.headers.update(key)
        first = asyncio.create_task(chat(server))
        await until(lambda: server.engine.num_live == 1)
        busy = await chat(server)
        assert (busy.status_code, busy.headers["retry-after"]) == (429, "4")
        assert "queue is full" in busy.json()["error"]
        first.cancel()


async def test_an_error_in_a_stream_is_a_line(start_server: StartServer) -> None:
    async def script(client: FakeClient, stream: TokenStream) -> None:
        stream.deliver(output(stream, [*b"He"]))
        await taken(stream)
        stream.deliver(Output(stream.id, [], "error", error="secret", error_code="internal"))

    async with start_server(script) as server:
        for asked in (chat(server), generate(server)):
            first, last = (await asked).text.splitlines()
            assert json.loads(first)["done"] is False
            assert set(json.loads(last)) == {"error"}
            assert "secret" not in last
        assert (await chat(server, stream=False)).status_code == 503


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away(start_server: StartServer, stream: bool) -> None:
    async with start_server(endless()) as server:
        for path, body in (
            ("/api/chat", {"messages": ASK}),
            ("/api/generate", {"prompt": "hi"}),
            ("/api/generate", {"prompt": "hi", "raw": True}),
        ):
            asked = asyncio.create_task(server.http.post(path, json={**body, "stream": stream}))
            await until(lambda: server.engine.num_live == 1)
            asked.cancel()
            await until(lambda: server.engine.num_live == 0)
        assert len(server.engine.aborted) == 3


async def test_curl_says_nothing_of_json(server: Server) -> None:
    body = json.dumps({"model": MODEL, "messages": ASK})
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert (await server.http.post("/api/chat", content=body, headers=form)).status_code == 200
    # A page of another origin can send that unasked, or no type, and it has an origin.
    page = {"origin": "https://example.org"}
    for path in ("/api/chat", "/v1/chat/completions"):
        for kind, status in ((form, 415), ({}, 415), ({"content-type": "application/json"}, 200)):
            answer = await server.http.post(path, content=body, headers={**kind, **page})
            assert answer.status_code == status, (path, kind)


async def test_metrics_and_the_log_have_the_routes(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "minisgl.requests")
    await chat(server)
    await generate(server)
    await server.http.delete("/api/delete")
    await server.http.post("/api/pull")
    await server.http.get("/api/tags")
    text = (await server.http.get("/metrics")).text
    for route, method, status in (
        ("/api/chat", "POST", 200),
        ("/api/generate", "POST", 200),
        ("/api/delete", "DELETE", 400),
        ("/api/pull", "POST", 400),
        ("/api/tags", "GET", 200),
    ):
        labels = f'method="{method}",route="{route}",status="{status}"'
        assert f"minisgl:http_requests_total{{{labels}}} 1.0" in text
    logged = [line.getMessage() for line in caplog.records if line.name == "minisgl.requests"]
    assert "POST /api/chat 200, 9 prompt tokens" in logged[0]
    assert "6 tokens" in logged[0]


@pytest.mark.parametrize("name", OLLAMA_BAD_REQUESTS)
async def test_bad_requests(server: Server, name: str) -> None:
    (path, body), part = OLLAMA_BAD_REQUESTS[name]
    answer = await server.http.post(path, content=content_of(body))
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"}
    assert part in answer.json()["error"]
    assert len(answer.json()["error"]) < 1000
    assert not server.engine.live
