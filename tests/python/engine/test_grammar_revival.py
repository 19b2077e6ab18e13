"""Streams with a grammar, and those whose thoughts have a budget, go on where they were when a rank
was killed: the finished answer is the one that nobody would have disturbed.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest

from minisgl.engine.client import EngineClient
from minisgl.engine.revival import RestartPolicy
from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import EngineOptions
from minisgl.sampling_params import SamplingParams, ThoughtFormat
from tests.python.launch.servers import processes
from tests.python.running.tiny_model import make_tiny_model
from tests.python.server.byte_tokenizer import END

ANSWER = r"(\[[a-f]{20}\]){100}[0-9]{1,9}"
GRAMMAR = f"start: /{ANSWER}/"
SEEDS = range(4)
THINKS = SamplingParams(
    max_tokens=620,
    seed=5,
    ignore_eos=True,
    thinking_token_budget=600,
    thought=ThoughtFormat(thoughts=[0], moves=b"", closings=[list(b"\n</think>")]),
)


def ranks() -> set[int]:
    own = str(os.getpid())
    return {pid for pid, (state, parent) in processes().items() if parent == own and state != "Z"}


async def read(stream: TokenStream, begun: asyncio.Event) -> tuple[list[int], str]:
    tokens: list[int] = []
    while True:
        output = await stream.next()
        tokens += output.token_ids
        if tokens:
            begun.set()
        if output.finish:
            return tokens, output.finish


@pytest.mark.parametrize("size", [1, 2])
async def test_after_a_killed_rank_the_answer_is_the_same(tmp_path: Path, size: int) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    before = ranks()
    client = EngineClient(
        EngineOptions(model_path=str(model), device="cpu"),
        size=size,
        restart=RestartPolicy(first_delay=0.01),
    )
    await client.start(120)
    try:

        def begin() -> tuple[asyncio.Future[list[tuple[list[int], str]]], asyncio.Event]:
            held = [SamplingParams(max_tokens=3000, seed=seed, grammar=GRAMMAR) for seed in SEEDS]
            streams = [client.submit([1, 2, 3], params) for params in (*held, THINKS)]
            begun = asyncio.Event()
            return asyncio.gather(*(read(stream, begun) for stream in streams)), begun

        undisturbed = await begin()[0]
        for _ in range(20):  # the answers may have come to an end before this process gets to it
            reading, begun = begin()
            await begun.wait()
            if comes_too_late := reading.done():
                continue
            os.kill(max(ranks() - before), signal.SIGKILL)
            assert await reading == undisturbed
            break
        assert not comes_too_late
        assert client.num_restarts == 1
        tokens, finish = undisturbed.pop()
        assert finish == "length"
        assert bytes(tokens[600:609]) == b"\n</think>"
        for tokens, finish in undisturbed:
            assert finish == "stop"
            assert tokens[-1] == END
            assert re.fullmatch(ANSWER, bytes(tokens[:-1]).decode())
    finally:
        await client.close()
