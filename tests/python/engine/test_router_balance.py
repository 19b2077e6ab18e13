"""How the router's choices divide requests: by number where they are equal, whatever the order of
their first tokens and ends, and by tokens where they are not.
"""

from __future__ import annotations

import random

import pytest

from minisgl.config import Routing
from minisgl.engine.router import Ask, Router

STEP_TOKENS = 2048  # of prompts that a replica computes in a step


class Engines:
    """Replicas behind a router that do a step when they are told to: prompts in order, and a token
    for each sequence whose prompt is done.
    """

    def __init__(
        self, replicas: int, *, routing: Routing = "prefix", cache_tokens: int = 0
    ) -> None:
        self.router = Router(routing)
        for number in range(replicas):
            self.router.add(number, cache_tokens=cache_tokens)
        self.waits: list[list[tuple[Ask, int]]] = [[] for _ in range(replicas)]
        self.runs: list[dict[int, tuple[Ask, int]]] = [{} for _ in range(replicas)]
        self.next_id = 0

    def submit(self, prompt: int, answer: int, *, shared: int = 0) -> int:
        """Its prompt's first tokens are `shared` with others. Returns the replica."""
        own = range(100_000 + self.next_id, 100_000 + self.next_id + prompt - shared)
        ask = Ask(self.next_id, [*range(shared), *own])
        self.next_id += 1
        there = self.router.choose(ask).replica
        self.router.placed(ask.id, there, ask.tokens)
        self.waits[there].append((ask, answer))
        return there

    def step(self, replica: int) -> int:
        """Returns how many requests ended."""
        waits, runs = self.waits[replica], self.runs[replica]
        room, ended = STEP_TOKENS, 0
        for id, (ask, left) in list(runs.items()):
            self.router.progressed(id, 1)
            runs[id] = ask, left - 1
            if left == 1:
                del runs[id]
                self.router.finished(id, ask.tokens)
                ended += 1
        while waits and (room := room - len(waits[0][0].tokens)) >= 0:
            ask, answer = waits.pop(0)
            self.router.progressed(ask.id, 1)
            runs[ask.id] = ask, answer - 1
        return ended

    def counts(self) -> list[int]:
        return [len(waits) + len(runs) for waits, runs in zip(self.waits, self.runs, strict=True)]

    def tokens(self) -> list[int]:
        asks = ([*(a for a, _ in w), *(a for a, _ in r.values())] for w, r in self.pairs())
        return [sum(len(ask.tokens) for ask in there) for there in asks]

    def pairs(self) -> list[tuple[list[tuple[Ask, int]], dict[int, tuple[Ask, int]]]]:
        return list(zip(self.waits, self.runs, strict=True))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("prompt", [16, 128, 1000])
@pytest.mark.parametrize("replicas", [2, 3, 8])
def test_a_burst_of_equal_requests_divides_evenly(replicas: int, prompt: int, seed: int) -> None:
    rng, engines = random.Random(seed), Engines(replicas)
    eager = rng.randrange(replicas)  # does most of the steps
    for _ in range(256):
        engines.submit(prompt, 10_000)
        counts = engines.counts()
        assert max(counts) - min(counts) <= 1
        while rng.random() < 0.5:
            engines.step(eager if rng.random() < 0.8 else rng.randrange(replicas))
    assert sorted(engines.counts())[0] == 256 // replicas


@pytest.mark.parametrize("shared", [128, 1024])
def test_what_a_burst_has_in_common_is_soon_everywhere(shared: int) -> None:
    rng, engines = random.Random(shared), Engines(2, cache_tokens=100_000)
    for _ in range(256):
        engines.submit(shared + 100, 10_000, shared=shared)
        engines.step(int(rng.random() < 0.8))
    assert engines.counts() == [128, 128]


@pytest.mark.parametrize("together", [1, 40])
@pytest.mark.parametrize("routing", ["prefix", "least"])
def test_streams_that_end_and_are_replaced_stay_even(routing: Routing, together: int) -> None:
    rng, engines = random.Random(together), Engines(2, routing=routing)
    for _ in range(256):
        engines.submit(128, rng.randint(1, 300))
    ended, steps = 0, 0
    while steps < 3000:
        ended += engines.step(int(rng.random() < 0.55))  # one is faster
        steps += 1
        if ended >= together:
            for _ in range(ended):
                engines.submit(128, rng.randint(1, 300))
            ended = 0
            assert engines.counts() == [128, 128]


def test_requests_of_all_sizes_divide_by_their_tokens() -> None:
    rng, engines = random.Random(0), Engines(4)
    for _ in range(400):
        engines.submit(rng.choice([50, 500, 2000, 8000]), 10_000)
    tokens, counts = engines.tokens(), engines.counts()
    assert max(tokens) <= 1.05 * sum(tokens) / 4
    assert max(counts) <= 1.2 * sum(counts) / 4


def test_requests_behind_a_long_prompt_go_elsewhere_until_it_is_computed() -> None:
    engines = Engines(2)
    long = engines.submit(16_000, 10_000)
    assert [engines.submit(64, 10_000) for _ in range(20)] == [1 - long] * 20
    ask, answer = engines.waits[long].pop()
    engines.router.progressed(ask.id, 1)
    engines.runs[long][ask.id] = ask, answer
    assert engines.submit(64, 10_000) == long


def test_a_long_answer_counts_more_and_more() -> None:
    engines = Engines(2)
    long = engines.submit(64, 100_000)
    other = engines.submit(64, 100_000)
    engines.step(long)
    engines.step(other)
    engines.router.progressed(0, 8 * 2048)
    assert [engines.submit(64, 1) for _ in range(7)] == [other] * 7
