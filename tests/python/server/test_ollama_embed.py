"""/api/embed and /api/embeddings over a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from minisgl.engine.stream import TokenStream
from minisgl.server import embeddings, ollama_embed
from tests.python.server.conftest import MODEL, Server, StartServer
from tests.python.server.fake_engine import FakeClient
from tests.python.server.test_embeddings import embed, vector
from tests.python.waiting import until


@pytest.fixture
async def server(start_server: StartServer) -> AsyncIterator[Server]:
    async with start_server(embed) as server:
        yield server


def post(server: Server, path: str = "/api/embed", **body: Any) -> Any:
    return server.http.post(path, json={"model": MODEL, **body})


async def test_an_embedding_per_text(server: Server) -> None:
    answer = (await post(server, input=["hi", "you"], keep_alive="5m", options={"a": 1})).json()
    assert answer["embeddings"] == [vector([*b"hi"]), vector([*b"you"])]
    assert (answer["model"], answer["prompt_eval_count"]) == (MODEL, 5)
    assert 0 < answer["load_duration"] <= answer["total_duration"]
    assert server.engine.submitted[-1].request.params.pooling.normalize
    answer = (await post(server, input="hi", dimensions=2, model="alias:latest")).json()
    assert (answer["model"], answer["embeddings"]) == ("alias:latest", [vector([*b"hi"], 2)])
    for nothing in ("", [], None):
        assert (await post(server, input=nothing)).json()["embeddings"] == []


async def test_the_older_route(server: Server) -> None:
    answer = (await post(server, "/api/embeddings", prompt="hi")).json()
    assert answer == {"embedding": vector([*b"hi"])}
    assert not server.engine.submitted[-1].request.params.pooling.normalize
    assert (await post(server, "/api/embeddings")).json() == {"embedding": []}


async def test_no_text_is_tokenized_for_too_many_numbers(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "MAX_VALUES", 16)
    monkeypatch.setattr(ollama_embed, "encode_inputs", None)
    answer = await post(server, input=["a"] * 3)
    assert answer.status_code == 400
    assert "(3 texts times 8 dimensions; limit 16)" in answer.json()["error"]


async def test_a_text_that_is_too_long(server: Server) -> None:
    answer = (await post(server, input="ab" * 200)).json()
    assert answer["embeddings"] == [vector([*b"ab" * 128])]  # its first 256 tokens
    refused = await post(server, input="ab" * 200, truncate=False)
    assert refused.status_code == 400
    assert "256 tokens" in refused.json()["error"]
    assert "truncate_prompt_tokens" not in refused.json()["error"]


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({"input": 5}, "input"),
        ({"input": [[1, 2]]}, "input[0]"),
        ({"input": ["a"] * 3000}, "input"),
        ({"input": "a", "dimensions": -1}, "dimensions"),
        ({"input": "a", "dimensions": 2**40}, "dimensions"),
        ({"input": "a", "keep_alive": "long"}, "keep_alive"),
        ({"input": "a", "truncate": "maybe"}, "truncate"),
    ],
)
async def test_bad_requests(server: Server, body: dict[str, Any], part: str) -> None:
    refused = await post(server, **body)
    assert refused.status_code == 400
    assert part in refused.json()["error"]
    assert not server.engine.live


async def test_keys_and_names(start_server: StartServer) -> None:
    async with start_server(embed, api_key=("key",)) as server:
        for path in ("/api/embed", "/api/embeddings"):
            refused = await post(server, path)
            assert (refused.status_code, set(refused.json())) == (401, {"error"})
            key = {"authorization": "Bearer key"}
            refused = await server.http.post(path, json={"model": "other"}, headers=key)
            assert (refused.status_code, set(refused.json())) == (404, {"error"})


async def test_a_client_that_goes_away(start_server: StartServer) -> None:
    async def script(client: FakeClient, stream: TokenStream) -> None:
        while not stream.finished:
            await asyncio.sleep(0.001)

    async with start_server(script) as server:
        asked = asyncio.create_task(post(server, input=["a", "b"]))
        await until(lambda: server.engine.num_live > 0)
        asked.cancel()
        await until(lambda: server.engine.num_live == 0)
        await server.engine.settle()


async def test_ollamas_client(server: Server) -> None:
    ollama = pytest.importorskip("ollama", reason="ollama is not installed: extra 'clients'")
    client = ollama.AsyncClient(host=server.url)
    answer = await client.embed(MODEL, ["hi", "you"])
    assert answer.embeddings == [vector([*b"hi"]), vector([*b"you"])]
    assert answer.prompt_eval_count == 5
    assert (await client.embeddings(MODEL, "hi")).embedding == vector([*b"hi"])
