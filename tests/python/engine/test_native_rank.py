"""EngineClient with the real rank and native engine, on the default model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from minisgl.engine.api import EngineStartError
from minisgl.engine.client import EngineClient
from minisgl.ipc.messages import BlockEvent, EngineOptions
from minisgl.sampling_params import SamplingParams
from tests.python.engine.reading import read


@pytest.fixture
def blocks() -> list[BlockEvent]:
    """What the engine's prefix cache said."""
    return []


@pytest_asyncio.fixture
async def client(default_gguf: Path, blocks: list[BlockEvent]) -> AsyncIterator[EngineClient]:
    options = EngineOptions(
        model_path=str(default_gguf), device="cpu", kv_cache_tokens=512, max_model_len=512
    )
    client = EngineClient(options, on_blocks=blocks.extend)
    await client.start(120)
    yield client
    await client.close()


async def test_a_request_gets_the_same_tokens_alone_and_among_others(client: EngineClient) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    alone, last = await read(client.submit([1, 2, 3, 4, 5], greedy))
    assert len(alone) == 16
    assert last.finish == "length"
    assert last.timings is not None
    streams = [client.submit([1, 2, 3, 4, 5], greedy)]
    streams += [client.submit([7 + i] * (10 + i), greedy) for i in range(7)]
    together = await asyncio.gather(*map(read, streams))
    assert together[0][0] == alone
    assert client.num_live == 0


async def test_aborts_end_every_stream_and_leave_room_for_others(client: EngineClient) -> None:
    long = SamplingParams(max_tokens=400, ignore_eos=True)
    streams = [client.submit([1, 2, 3 + i], long) for i in range(40)]
    await streams[0].next()
    for stream in streams:
        stream.abort()
    for stream in streams:
        assert (await read(stream))[1].finish == "abort"
    while client.num_live:
        await asyncio.sleep(0.01)
    # As long as the KV cache allows: what the others held is free again.
    everything = SamplingParams(max_tokens=client.info.max_model_len - 1, ignore_eos=True)
    tokens, _ = await read(client.submit([9], everything))
    assert len(tokens) == client.info.max_model_len - 1


async def test_the_prefix_cache_says_what_it_has(
    client: EngineClient, blocks: list[BlockEvent]
) -> None:
    assert blocks == [BlockEvent("cleared")]  # it began
    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    prompt = list(range(100, 140))
    answer, _ = await read(client.submit(prompt, greedy, prefix_salt=bytes(range(16))))
    while len(blocks) < 2:
        await asyncio.sleep(0.01)
    prompt_blocks = blocks[1]
    assert (prompt_blocks.kind, prompt_blocks.medium) == ("stored", "CPU")
    assert prompt_blocks.token_ids == prompt[:32]
    assert len(prompt_blocks.hashes) == 2
    assert prompt_blocks.parent is None
    assert prompt_blocks.salt == bytes(range(16))
    # The answer's last token isn't computed: 47 are, and two pages of them are full.
    await read(client.submit([*prompt, *answer, 1, 2], greedy))  # in another space
    public = next(one for one in blocks[2:] if one.kind == "stored")
    assert public.token_ids == [*prompt, *answer]
    assert not set(public.hashes) & set(prompt_blocks.hashes)
    stored = {hash for one in blocks if one.kind == "stored" for hash in one.hashes}
    one = SamplingParams(max_tokens=1)
    await read(client.submit([9] * (client.info.max_model_len - 1), one))  # takes all pages
    removed = {hash for one in blocks if one.kind == "removed" for hash in one.hashes}
    assert stored <= removed


async def test_a_model_that_is_none_is_one_sentence() -> None:
    client = EngineClient(EngineOptions(model_path="/no/such/model.gguf"))
    with pytest.raises(EngineStartError, match=r"/no/such/model\.gguf"):
        await client.start(60)
    await client.close()
