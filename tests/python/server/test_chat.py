"""Chat completions, streaming and not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from minisgl.sampling_params import MAX_STOP_STRING_CHARS, MAX_STOP_STRINGS, MAX_TEMPERATURE
from tests.python.server.conftest import MODEL, Server, StartServer, events
from tests.python.server.fake_engine import reply

USER = [{"role": "user", "content": "hi"}]


async def test_answer(server: Server) -> None:
    answer = (await server.chat("hi")).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == MODEL
    assert answer["id"].startswith("chatcmpl-")
    choice = answer["choices"][0]
    message = {"role": "assistant", "content": "Hello", "refusal": None, "tool_calls": []}
    assert choice["message"] == message
    assert choice["finish_reason"] == "stop"
    prompt = server.engine.submitted[0].request.prompt
    assert bytes(token for token in prompt if token < 256) == b"u:hi\na:"
    # The stop token is generated too.
    assert answer["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": 6,
        "total_tokens": len(prompt) + 6,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_the_default_is_the_rest_of_the_context(server: Server) -> None:
    await server.chat("hi")
    stream = server.engine.submitted[0]
    assert stream.request.params.max_tokens == 256 - len(stream.request.prompt)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_max_tokens(server: Server, name: str) -> None:
    choice = (await server.chat(**{name: 3})).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hel", "length")


async def test_sampling_fields_reach_the_engine(server: Server) -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.25,
        "frequency_penalty": -0.25,
        "min_tokens": 2,
        "ignore_eos": True,
        "stop_token_ids": [5],
        "allowed_token_ids": [5, 7],
    }
    answer = await server.chat(**fields, logit_bias={"3": -2.5}, seed=-2)
    assert answer.status_code == 200
    params = server.engine.submitted[0].request.params
    assert {name: getattr(params, name) for name in fields} == fields
    assert params.logit_bias == {3: -2.5}
    assert params.seed == 2**64 - 2


async def test_numbers_as_clients_write_them(server: Server) -> None:
    answer = await server.chat(
        max_tokens=16.0,
        n=1e0,
        seed="7",
        top_k=40.0,
        temperature="0.5",
        logprobs=1,
        stop_token_ids=[5.0],
    )
    assert answer.status_code == 200, answer.text
    params = server.engine.submitted[0].request.params
    assert (params.max_tokens, params.seed, params.top_k) == (16, 7, 40)
    assert (params.temperature, params.logprobs, params.stop_token_ids) == (0.5, 0, [5])


@pytest.mark.parametrize("top_p", [0, 1e-46])
async def test_top_p_0_is_greedy(server: Server, top_p: float) -> None:
    await server.chat(top_p=top_p, temperature=1.5)
    params = server.engine.submitted[0].request.params
    assert (params.temperature, params.top_p) == (0.0, 1.0)


@pytest.mark.parametrize("stop", ["", [""], [], None, ["", "lo"]])
async def test_empty_stop_strings_stop_nothing(server: Server, stop: Any) -> None:
    choice = (await server.chat(stop=stop, bad_words=[""])).json()["choices"][0]
    assert choice["message"]["content"] == ("Hel" if stop and "lo" in stop else "Hello")


@pytest.mark.parametrize("seed", [-1, None])
async def test_no_seed_is_another_for_each_choice(server: Server, seed: int | None) -> None:
    await server.chat(seed=seed, n=3)
    seeds = {stream.request.params.seed for stream in server.engine.submitted}
    assert len(seeds) == 3
    assert 2**64 - 1 not in seeds


async def test_the_newer_limit_wins_and_is_cut_to_what_fits(server: Server) -> None:
    for fields, expected in (
        ({"max_tokens": 1, "max_completion_tokens": 2}, "He"),
        ({"max_tokens": 2, "max_completion_tokens": None}, "He"),
        ({"max_tokens": 1, "max_completion_tokens": -1}, "Hello"),
        ({"max_tokens": 32000}, "Hello"),
    ):
        choice = (await server.chat(**fields)).json()["choices"][0]
        assert choice["message"]["content"] == expected, fields
    assert (await server.chat("a" * 300, max_tokens=-1)).status_code == 400


async def test_what_the_model_publishes_is_a_requests_default(start_server: StartServer) -> None:
    published = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1}
    async with start_server(sampling_defaults=published) as server:
        await server.chat()
        await server.complete()
        await server.chat(temperature=None, top_k=None)
        await server.chat(temperature=0, top_k=-1, top_p=0.5)
        await server.complete(repetition_penalty=1, temperature=1.0)
        params = [stream.request.params for stream in server.engine.submitted]
    values = [(one.temperature, one.top_k, one.top_p, one.repetition_penalty) for one in params]
    assert values == [
        *[(0.7, 20, 1.0, 1.1)] * 3,
        (0.0, -1, 0.5, 1.1),
        (1.0, 20, 1.0, 1.0),
    ]


async def test_bad_words_reach_the_engine_as_tokens(server: Server) -> None:
    await server.chat(bad_words=["ab", "c"])
    await server.complete(["x", "y"], bad_words=["c"])
    chat, *completions = (stream.request for stream in server.engine.submitted)
    assert chat.bad_words == [[97, 98], [32, 97, 98], [99], [32, 99]]
    assert chat.params.bad_words == ["ab", "c"]
    assert [request.bad_words for request in completions] == [[[99], [32, 99]]] * 2


async def test_ranges_are_those_of_sampling_params(server: Server) -> None:
    stop = ["x" * MAX_STOP_STRING_CHARS] * MAX_STOP_STRINGS
    answer = await server.chat(temperature=MAX_TEMPERATURE, stop=stop, top_k=-1)
    assert answer.status_code == 200
    params = server.engine.submitted[0].request.params
    assert (params.temperature, params.stop, params.top_k) == (MAX_TEMPERATURE, stop, -1)


async def test_fields_without_effect_are_accepted(server: Server) -> None:
    answer = await server.chat(
        user="me",
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        tools=[{"type": "function", "function": {"name": "f"}}],
        tool_choice="none",
        modalities=["text"],
        logprobs=False,
        stop=None,
    )
    assert answer.status_code == 200, answer.text
    answer = await server.chat(user=5, store="yes", metadata=["a"], prediction="b")
    assert answer.status_code == 200, answer.text


async def test_the_template_decides_about_other_roles(server: Server) -> None:
    roles = ("ipython", "observation", "model", "Assistant", "a" * 64)
    messages = [{"role": role, "content": "x"} for role in roles]
    answer = await server.http.post("/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 200, answer.text
    prompt = server.engine.submitted[0].request.prompt
    assert bytes(token for token in prompt if token < 256) == b"i:x\no:x\nm:x\nA:x\na:x\na:"


async def test_messages_of_all_roles(server: Server) -> None:
    messages = [
        {"role": "developer", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]},
        {"role": "assistant", "content": "C", "refusal": None, "tool_calls": None},
        {"role": "user", "content": "D", "name": "me"},
    ]
    answer = await server.http.post("/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 200, answer.text
    prompt = server.engine.submitted[0].request.prompt
    assert bytes(token for token in prompt if token < 256) == b"s:S\nu:A\nB\na:C\nu:D\na:"


async def test_the_template_refuses_messages(server: Server) -> None:
    messages = [{"role": "tool", "content": "x", "tool_call_id": "1"}]
    answer = await server.http.post("/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 400
    assert "no tools here" in answer.json()["error"]["message"]


async def test_stream(server: Server) -> None:
    answer = await server.chat(stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(answer.text)
    assert done == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in parsed}) == 1
    assert parsed[0]["object"] == "chat.completion.chunk"
    deltas = [chunk["choices"][0] for chunk in parsed]
    assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(d["delta"].get("content", "") for d in deltas) == "Hello"
    assert deltas[-1]["delta"] == {}
    assert [d["finish_reason"] for d in deltas[-2:]] == [None, "stop"]
    assert all("usage" not in chunk for chunk in parsed)


async def test_stream_with_usage(server: Server) -> None:
    answer = await server.chat(stream=True, stream_options={"include_usage": True})
    *chunks, last, done = events(answer.text)
    assert done == "[DONE]"
    assert all(json.loads(chunk)["usage"] is None for chunk in chunks)
    assert json.loads(last)["choices"] == []
    assert json.loads(last)["usage"]["completion_tokens"] == 6


async def test_stream_with_continuous_usage(start_server: StartServer) -> None:
    async with start_server(reply("abcd", delay=0.01)) as server:
        options = {"include_usage": True, "continuous_usage_stats": True}
        answer = await server.chat(stream=True, stream_options=options)
        *chunks, _ = events(answer.text)
        counts = [json.loads(chunk)["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts)
        assert counts[-1] == 5
        assert counts[0] < 5


async def test_a_character_is_never_cut(start_server: StartServer) -> None:
    text = "Grüße, 世界! 👩‍🚀"
    async with start_server(reply(text, delay=0.001)) as server:
        answer = await server.chat(stream=True)
        *chunks, _ = events(answer.text)
        pieces = [json.loads(c)["choices"][0]["delta"].get("content", "") for c in chunks]
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_text_and_request(start_server: StartServer, stream: bool) -> None:
    async with start_server(reply("one two three four", delay=0.002)) as server:
        answer = await server.chat(stop=["zzz", "three"], stream=stream)
        if stream:
            *chunks, _ = events(answer.text)
            choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
            text = "".join(choice["delta"].get("content", "") for choice in choices)
            reason = choices[-1]["finish_reason"]
        else:
            choice = answer.json()["choices"][0]
            text, reason = choice["message"]["content"], choice["finish_reason"]
            assert answer.json()["usage"]["completion_tokens"] == len("one two three")
        assert (text, reason) == ("one two ", "stop")
        await server.engine.settle()
        assert server.engine.aborted == [0]


async def test_a_stop_string_before_min_tokens_ends_nothing(start_server: StartServer) -> None:
    async with start_server(reply("one two one two", delay=0)) as server:
        answer = (await server.chat(stop="two", min_tokens=len("one two"))).json()
        choice = answer["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("one two one ", "stop")
        assert answer["usage"]["completion_tokens"] == len("one two one two")


async def test_n_choices_with_a_seed(server: Server) -> None:
    answer = (await server.chat(n=3, seed=10)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["Hello"] * 3
    assert [stream.request.params.seed for stream in server.engine.submitted] == [10, 11, 12]
    assert answer["usage"]["completion_tokens"] == 18


async def test_n_choices_stream(start_server: StartServer) -> None:
    async with start_server(reply("Hello", delay=0.001)) as server:
        *chunks, done = events((await server.chat(n=3, stream=True)).text)
        assert done == "[DONE]"
        texts, ends = {0: "", 1: "", 2: ""}, []
        for chunk in chunks:
            choice = json.loads(chunk)["choices"][0]
            texts[choice["index"]] += choice["delta"].get("content", "")
            ends += [choice["index"]] if choice["finish_reason"] else []
        assert texts == {0: "Hello", 1: "Hello", 2: "Hello"}
        assert sorted(ends) == [0, 1, 2]


async def test_logprobs(server: Server) -> None:
    answer = (await server.chat(logprobs=True, top_logprobs=2, max_tokens=2)).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["H", "e"]
    assert content[0]["logprob"] == pytest.approx(-0.72)
    assert content[0]["bytes"] == [72]
    assert [top["token"] for top in content[0]["top_logprobs"]] == ["H", "I"]


async def test_logprobs_of_a_stream_match_its_text(start_server: StartServer) -> None:
    async with start_server(reply("é one two", delay=0.001)) as server:
        answer = await server.chat(stream=True, logprobs=True, stop="two")
        *chunks, _ = events(answer.text)
        data = b""
        for chunk in chunks:
            choice = json.loads(chunk)["choices"][0]
            for entry in (choice["logprobs"] or {"content": []})["content"]:
                data += bytes(entry["bytes"])
        # The tokens of the stop string, and only those, are left out.
        assert data.decode() == "é one "


async def test_logprobs_of_a_partial_character(start_server: StartServer) -> None:
    async with start_server(reply("é")) as server:
        answer = (await server.chat(logprobs=True)).json()
        content = answer["choices"][0]["logprobs"]["content"]
        assert [entry["token"] for entry in content] == ["bytes:\\xc3", "bytes:\\xa9"]
        assert content[0]["top_logprobs"] == []


async def test_openai_sdk(server: Server) -> None:
    async with server.openai() as client:
        answer = await client.chat.completions.create(model=MODEL, messages=USER)  # type: ignore[arg-type]
        assert answer.choices[0].message.content == "Hello"
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=USER,  # type: ignore[arg-type]
            stream=True,
            stream_options={"include_usage": True},
        )
        text, usage = "", None
        async for chunk in stream:
            usage = chunk.usage or usage
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
        assert text == "Hello"
        assert usage is not None
        assert usage.completion_tokens == 6
