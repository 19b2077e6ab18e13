"""A request that kills each engine that has it: it alone ends with an error, after few deaths."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.engine.client import EngineClient
from minisgl.engine.replicas import Replicas
from minisgl.engine.revival import RestartPolicy
from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import Submit
from minisgl.sampling_params import SamplingParams
from tests.python.engine.paper_engines import (
    PaperSite,
    answer,
    paper_client,
    paper_replicas,
)

POLICY = RestartPolicy(max_failures=1000, first_delay=0, max_replays=2)
Poison = Callable[[Submit, int], bool]


def with_answer(count: int) -> Poison:
    """Kills wherever it has so many tokens of its answer, or more."""
    return lambda request, tokens: tokens - len(request.prompt) + request.num_resumed >= count


def after(steps: int) -> Poison:
    """Kills each engine after so many steps there."""
    return lambda request, tokens: tokens - len(request.prompt) >= steps


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


async def serve(
    count: int,
    poison: Poison,
    place: int,
    *,
    times: int = 1,
    innocents: int = 12,
    tokens: int = 200,
) -> list[int]:
    """Has engines, so many, serve innocents and, submitted after `place` of them, a poison, which
    comes again whenever it has ended, so many times in all. How many engines died of each.
    """
    site = PaperSite()
    engine: EngineClient | Replicas
    if count == 1:
        engine = paper_client(site.take(0), POLICY)
    else:
        engine = paper_replicas(site, count, restart=POLICY)
    await engine.start(None)
    while len(site.engines) < count:
        await asyncio.sleep(0)

    def submit(number: int) -> TokenStream:
        return engine.submit([number, 5], SamplingParams(max_tokens=tokens - number % 7))

    streams = [submit(number) for number in range(place)]
    killers: list[TokenStream] = []
    deaths: list[int] = []
    for number in range(times):
        killers.append(submit(place))
        site.poison = {killers[-1].id: poison}
        if number == 0:
            streams += [submit(number + 1) for number in range(place, innocents)]
        site.num_deaths = 0
        await run(engine, site, killers[-1:])
        deaths.append(site.num_deaths)
    await run(engine, site, streams)
    for stream in killers:
        expected = answer(stream.request.prompt, stream.request.params.max_tokens)
        assert stream.received == expected[: len(stream.received)]
        assert (await stream.next(whole=True)).error_code == "engine_failure"
    for stream in streams:
        expected = answer(stream.request.prompt, stream.request.params.max_tokens)
        assert (stream.finish, stream.received) == ("length", expected)
    assert engine.num_live == engine.num_replaying == engine.waiting_tokens == 0
    await engine.close()
    return deaths


async def run(engine: EngineClient | Replicas, site: PaperSite, streams: list[TokenStream]) -> None:
    """Until these streams have ended, and an engine serves again."""

    async def steps() -> None:
        while engine.state != "ready" or not all(stream.finished for stream in streams):
            for paper in site.alive():
                paper.step()
            await asyncio.sleep(0)

    await asyncio.wait_for(steps(), 20)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    ("poison", "most"),
    [
        (with_answer(0), 4),
        (with_answer(12), 4),
        (after(3), 4),
        (after(20), 6),  # more than a trial's tokens, at first
    ],
)
async def test_few_deaths_show_which_request_it_was(count: int, poison: Poison, most: int) -> None:
    for place in (0, 5, 12):
        for deaths in await serve(count, poison, place, times=3):
            assert 3 <= deaths <= most


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 3),
    poison=st.one_of(
        st.builds(with_answer, st.integers(0, 50)), st.builds(after, st.integers(0, 15))
    ),
    innocents=st.integers(0, 12),
    place=st.integers(0, 12),
)
def test_whatever_kills_and_when_the_others_have_all_their_tokens(
    count: int, poison: Poison, innocents: int, place: int
) -> None:
    place = min(place, innocents)
    deaths = asyncio.run(serve(count, poison, place, innocents=innocents))
    assert 3 <= deaths[0] <= 6


async def test_nobody_ends_where_engines_die_of_something_else() -> None:
    """Each of three kills comes while no suspect is on trial any more."""
    site = PaperSite()
    engine = paper_client(site.take(0), POLICY)
    await engine.start(None)
    streams = [engine.submit([number], SamplingParams(max_tokens=900)) for number in range(4)]
    for _ in range(3):
        while engine.state != "ready" or engine.requests.num_suspects:
            for paper in site.alive():
                paper.step()
            await asyncio.sleep(0)
        site.engines[0].die()
    await run(engine, site, streams)
    for stream in streams:
        assert (stream.finish, stream.received) == ("length", answer(stream.request.prompt, 900))
    await engine.close()


async def test_suspects_are_spread_and_one_that_waits_can_be_aborted() -> None:
    site = PaperSite()
    replicas = paper_replicas(site, 3, restart=RestartPolicy(first_delay=60, max_replays=1))
    await replicas.start(None)
    while len(site.engines) < 3:
        await asyncio.sleep(0)
    # One session, so that all are at one replica.
    streams = [
        replicas.submit([1, number], SamplingParams(max_tokens=20), session="one")
        for number in range(6)
    ]
    next(paper for paper in site.alive() if paper.requests).die()
    assert [len(paper.requests) for paper in site.alive()] == [1, 1]
    serving = [one.engine for one in replicas.members if one.engine.serves]
    assert [engine.requests.num_suspects for engine in serving] == [3, 3]
    aboard = {number for paper in site.alive() for number in paper.requests}
    waiting = [stream for stream in streams if stream.id not in aboard]
    assert len(waiting) == replicas.num_live - 2 == 4
    waiting[0].abort()
    assert waiting[0].finish == "abort"
    assert replicas.num_live == 5
    for _ in range(8):  # the trial's tokens
        assert {number for paper in site.alive() for number in paper.requests} == aboard
        for paper in site.alive():
            paper.step()
    assert sum(len(paper.requests) for paper in site.alive()) == 4
    await replicas.close()
