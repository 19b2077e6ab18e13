"""/v1/embeddings and /v1/score over a scripted engine."""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import re
import struct
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import Output
from minisgl.sampling_params import PoolingParams
from minisgl.server import embeddings
from minisgl.server.errors import MAX_TOKENIZED
from tests.python.server.byte_tokenizer import VOCAB_SIZE
from tests.python.server.conftest import MODEL, Server, StartServer
from tests.python.server.fake_engine import FakeClient
from tests.python.waiting import until

DIMENSIONS = 8


def vector(prompt: list[int], dimensions: int = DIMENSIONS) -> list[float]:
    """What the scripted engine makes of a prompt: numbers that 32 bits hold."""
    return [float((sum(prompt) * (i + 3) + len(prompt)) % 97) / 128 for i in range(dimensions)]


async def embed(client: FakeClient, stream: TokenStream) -> None:
    pooling = stream.request.params.pooling
    assert pooling is not None
    # The longer ones end later: answers come in another order than the inputs.
    await asyncio.sleep(0.001 * (1 + sum(stream.request.prompt) % 5))
    numbers = vector(stream.request.prompt, pooling.dimensions or DIMENSIONS)
    output = Output(stream.id, [], "stop", timings=(0.001, 0.002, 0.0), num_cached=1)
    output.embedding = struct.pack(f"<{len(numbers)}f", *numbers)
    stream.deliver(output)


@pytest.fixture
async def server(start_server: StartServer) -> AsyncIterator[Server]:
    async with start_server(embed) as server:
        server.engine.max_running = 256
        yield server


async def post(server: Server, path: str = "embeddings", **body: Any) -> httpx.Response:
    return await server.http.post(f"/v1/{path}", json=body)


async def test_one_embedding(server: Server) -> None:
    answer = await post(server, input="hi", model=MODEL)
    assert answer.json() == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": vector([*b"hi"])}],
        "model": MODEL,
        "usage": {
            "prompt_tokens": 2,
            "total_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }
    params = server.engine.submitted[0].request.params
    assert (params.max_tokens, params.pooling) == (0, PoolingParams())


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        (["hi", "you"], [[*b"hi"], [*b"you"]]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
    ],
)
async def test_inputs_in_every_form(server: Server, given: Any, prompts: list[list[int]]) -> None:
    answer = await post(server, input=given)
    assert [one["embedding"] for one in answer.json()["data"]] == list(map(vector, prompts))
    assert [one["index"] for one in answer.json()["data"]] == list(range(len(prompts)))
    assert answer.json()["usage"]["prompt_tokens"] == sum(map(len, prompts))


async def test_what_the_fields_ask_for(server: Server) -> None:
    answer = await post(
        server, input="hello", dimensions=3, pooling="mean", normalize=False, user="someone",
        encoding_format="base64", truncate_prompt_tokens=2,
    )  # fmt: skip
    (one,) = answer.json()["data"]
    assert struct.unpack("<3f", base64.b64decode(one["embedding"])) == tuple(vector([*b"lo"], 3))
    params = server.engine.submitted[0].request.params
    assert params.pooling == PoolingParams(pooling="mean", normalize=False, dimensions=3)


async def test_messages(server: Server) -> None:
    answer = await post(server, messages=[{"role": "user", "content": "hi"}])
    chat = await server.http.post(
        "/tokenize",
        json={"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": False},
    )
    assert answer.json()["data"][0]["embedding"] == vector(chat.json()["tokens"])


async def test_the_openai_client_asks_for_base64(server: Server) -> None:
    async with server.openai() as client:
        texts = [f"text {number}" for number in range(50)]
        answer = await client.embeddings.create(model=MODEL, input=texts)
        for text, one in zip(texts, answer.data, strict=True):
            assert one.embedding == vector([*text.encode()])
        cut = await client.embeddings.create(model=MODEL, input="a", dimensions=2)
        assert cut.data[0].embedding == vector([97], 2)
        plain = await client.embeddings.create(model=MODEL, input="a", encoding_format="float")
        assert plain.data[0].embedding == vector([97])


@pytest.mark.parametrize(
    ("body", "param", "sentence"),
    [
        ({}, "input", "Missing required parameter"),
        ({"input": []}, "input", "The input is empty"),
        ({"input": ""}, "input", "'input' is empty"),
        ({"input": ["a", ""]}, "input[1]", r"'input\[1\]' is empty"),
        ({"input": ["a", 5]}, "input", "not a mixture"),
        ({"input": [1, VOCAB_SIZE]}, "input", f"got {VOCAB_SIZE} in 'input'"),
        ({"input": "a" * 257}, "input", "256 tokens, but 'input' has 257"),
        ({"input": ["a", [1] * 300]}, None, "not a mixture"),
        ({"input": "a", "dimensions": DIMENSIONS + 1}, "dimensions", "between 1 and 8.* got 9"),
        ({"input": "a", "dimensions": 0}, "dimensions", ">= 1"),
        ({"input": "a", "encoding_format": "bytes"}, "encoding_format", "'bytes'"),
        ({"input": "a", "pooling": "cls"}, "pooling", "'cls'"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1"),
        ({"input": "a", "embed_dtype": "float16"}, "embed_dtype", "32-bit"),
        ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, "messages", "both"),
        ({"input": ["a"] * 2049}, "input", r"\(2049; limit 2048\)"),
    ],
)
async def test_refusals_name_the_value(
    server: Server, body: dict[str, Any], param: str | None, sentence: str
) -> None:
    answer = await post(server, **body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    if param is not None:
        assert error["param"] == param
    assert re.search(sentence, error["message"]), error["message"]
    assert not server.engine.live


async def test_tokens_and_numbers_of_a_request_are_bounded(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_TOKENIZED == 2**20
    monkeypatch.setattr(embeddings, "MAX_TOKENIZED", 500)
    answer = await post(server, input=["a" * 200] * 3)
    assert answer.status_code == 400
    assert "too many tokens together (at least 600; limit 500)" in answer.json()["error"]["message"]
    monkeypatch.setattr(embeddings, "MAX_VALUES", 16)
    answer = await post(server, input=["a"] * 3)
    assert "(3 texts times 8 dimensions; limit 16)" in answer.json()["error"]["message"]
    assert (await post(server, input=["a"] * 3, dimensions=5)).status_code == 200
    monkeypatch.setattr(embeddings, "encode_inputs", None)  # no text is tokenized for nothing
    assert (await post(server, input=["a"] * 3)).status_code == 400


async def test_a_request_has_no_more_prompts_in_the_engine_than_run_at_once(
    start_server: StartServer,
) -> None:
    most = 0

    async def watch(client: FakeClient, stream: TokenStream) -> None:
        nonlocal most
        most = max(most, client.num_live)
        await embed(client, stream)

    async with start_server(watch) as server:
        server.engine.max_running = 7
        answer = await post(server, input=[[number] for number in range(100)])
        found = [one["embedding"] for one in answer.json()["data"]]
        assert found == [vector([number]) for number in range(100)]
        assert most == 7


async def test_a_full_queue(start_server: StartServer) -> None:
    async with start_server(embed, max_live=3) as server:
        server.engine.max_running = 256  # more than the queue has room for
        answer = await post(server, input=[[number] for number in range(20)])
        assert len(answer.json()["data"]) == 20
    async with start_server(embed, max_live=0) as server:
        answer = await post(server, input="a")
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "queue_full"
        assert answer.headers["retry-after"]


async def wait_for_ever(client: FakeClient, stream: TokenStream) -> None:
    while not stream.finished:
        await asyncio.sleep(0.001)


async def test_a_client_that_goes_ends_its_prompts(start_server: StartServer) -> None:
    async with start_server(wait_for_ever) as server:
        server.engine.max_running = 256
        asking = asyncio.create_task(post(server, input=["a", "b"]))
        await until(lambda: server.engine.num_live == 2)
        asking.cancel()
        await until(lambda: sorted(server.engine.aborted) == [0, 1])
        metrics = (await server.http.get("/metrics")).text
        assert 'finished_reason="abort",model_name="org/test-model"} 2.0' in metrics


async def test_metrics_and_the_line_in_the_log(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "minisgl.requests")
    await post(server, input=["abc", "de"])
    metrics = (await server.http.get("/metrics")).text
    labels = '{engine="0",model_name="org/test-model"}'
    assert f"minisgl:prompt_tokens_total{labels} 5.0" in metrics
    assert f"minisgl:e2e_request_latency_seconds_count{labels} 2.0" in metrics
    assert f"minisgl:generation_tokens_total{labels} 0.0" in metrics
    (line,) = [one.getMessage() for one in caplog.records if "embeddings" in one.getMessage()]
    assert "POST /v1/embeddings 200, 5 prompt tokens, queued 0.0010 s, 0 tokens" in line
    assert line.endswith("stop")


def cosine(one: list[int], other: list[int]) -> float:
    product: float = sum(a * b for a, b in zip(vector(one), vector(other), strict=True))
    return max(-1.0, min(1.0, product))


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ("a", "b", [("a", "b")]),
        ("a", ["b", "c", "a"], [("a", "b"), ("a", "c"), ("a", "a")]),
        (["a", "b"], ["c", "d"], [("a", "c"), ("b", "d")]),
        (["a"], ["c", "d"], [("a", "c"), ("a", "d")]),
    ],
)
async def test_scores(
    server: Server, first: Any, second: Any, pairs: list[tuple[str, str]]
) -> None:
    answer = (await post(server, "score", text_1=first, text_2=second)).json()
    expected = [cosine([*one.encode()], [*other.encode()]) for one, other in pairs]
    assert [one["index"] for one in answer["data"]] == list(range(len(pairs)))
    assert [one["score"] for one in answer["data"]] == pytest.approx(expected)
    assert {one["object"] for one in answer["data"]} == {"score"}
    assert (answer["object"], answer["model"]) == ("list", MODEL)
    assert answer["id"].startswith("score-")
    assert answer["usage"]["total_tokens"] == len(first) + len(second)
    assert all(math.isfinite(one["score"]) for one in answer["data"])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text_1": "a"}, "text_2"),
        ({"text_1": "a", "text_2": []}, "text_2"),
        ({"text_1": ["a", "b"], "text_2": "c"}, "text_1"),
        ({"text_1": "a", "text_2": ["b", ""]}, "text_2[1]"),
        ({"text_1": "a", "text_2": "b", "dimensions": 4}, "dimensions"),
        ({"queries": "a", "documents": "b", "text_1": "a", "text_2": "b"}, None),
    ],
)
async def test_scores_that_are_refused(
    server: Server, body: dict[str, Any], param: str | None
) -> None:
    answer = await post(server, "score", **body)
    assert answer.status_code == 400
    if param is not None:
        assert answer.json()["error"]["param"] == param
