"""Embeddings beside streams, on two ranks, before and after one of them is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from minisgl.engine.client import EngineClient
from minisgl.engine.revival import RestartPolicy
from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import EngineOptions
from minisgl.sampling_params import PoolingParams, SamplingParams, pooled_params
from tests.python.launch.servers import processes
from tests.python.models.tiny_models import token_ids
from tests.python.running.tiny_model import make_tiny_model
from tests.python.waiting import until

STREAMS = [(token_ids(20 + seed, seed=seed), seed) for seed in range(4)]
# Long ones take several steps; two begin alike.
PROMPTS = [
    (token_ids(length, seed=length % 7), kind)
    for length in (3, 40, 900, 2000, 3000, 4000)
    for kind in ("last", "mean")
]


def ranks() -> set[int]:
    own = str(os.getpid())
    return {pid for pid, (state, parent) in processes().items() if parent == own and state != "Z"}


def begin_streams(client: EngineClient) -> list[TokenStream]:
    return [
        client.submit(prompt, SamplingParams(max_tokens=800, seed=seed, ignore_eos=True))
        for prompt, seed in STREAMS
    ]


def begin_embeddings(client: EngineClient) -> list[TokenStream]:
    return [
        client.submit(prompt, pooled_params(PoolingParams(pooling=kind)))
        for prompt, kind in PROMPTS
    ]


async def tokens_of(streams: list[TokenStream]) -> list[list[int]]:
    outputs = await asyncio.gather(*(stream.next(whole=True) for stream in streams))
    assert {output.finish for output in outputs} == {"length"}
    return [output.token_ids for output in outputs]


async def embeddings_of(streams: list[TokenStream]) -> list[bytes]:
    outputs = await asyncio.gather(*(stream.next(whole=True) for stream in streams))
    assert {(output.finish, len(output.embedding)) for output in outputs} == {("stop", 256)}
    return [output.embedding for output in outputs]


async def test_beside_streams_and_after_a_killed_rank(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    before = ranks()
    client = EngineClient(
        EngineOptions(model_path=str(model), device="cpu"),
        size=2,
        restart=RestartPolicy(first_delay=0.01),
    )
    await client.start(120)
    try:
        alone = await tokens_of(begin_streams(client))
        embeddings = [(await embeddings_of([one]))[0] for one in begin_embeddings(client)]

        streams = begin_streams(client)
        await until(lambda: all(stream.received for stream in streams))
        assert await embeddings_of(begin_embeddings(client)) == embeddings
        assert not all(stream.finished for stream in streams)
        assert await tokens_of(streams) == alone

        streams, pooled = begin_streams(client), begin_embeddings(client)
        await until(lambda: any(stream.finished for stream in pooled))
        assert not all(stream.finished for stream in pooled)
        os.kill(max(ranks() - before), signal.SIGKILL)
        assert await embeddings_of(pooled) == embeddings
        assert await tokens_of(streams) == alone
        assert client.num_restarts == 1

        pooled = begin_embeddings(client)
        for stream in pooled:
            stream.abort()
        outputs = [await stream.next(whole=True) for stream in pooled]
        assert {(output.finish, output.embedding) for output in outputs} == {("abort", b"")}
        await until(lambda: client.num_live == 0)
        assert await embeddings_of(begin_embeddings(client)) == embeddings
        assert client.stats.pages_free == client.stats.pages_total
    finally:
        await client.close()
