"""Requests to paper engines, and what properties of theirs are tested with: actions at random."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypothesis import strategies as st

from minisgl.engine.replicas import Replicas
from minisgl.engine.stream import TokenStream
from minisgl.sampling_params import SamplingParams
from tests.python.engine.paper_engines import PaperSite, turns
from tests.python.waiting import PATIENCE

Action = tuple[str, int]  # what, and which or how many

TRAFFIC: st.SearchStrategy[Action] = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 30)),
    st.tuples(st.just("crowd"), st.integers(1, 12)),
    st.tuples(st.just("step"), st.integers(0, 9)),
    st.tuples(st.just("die"), st.integers(0, 9)),
    st.tuples(st.just("abort"), st.integers(0, 9)),
    st.tuples(st.just("turns"), st.integers(1, 20)),
)


async def until(condition: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0)

    await asyncio.wait_for(poll(), PATIENCE)


def submit(replicas: Replicas, prompt: list[int], count: int) -> TokenStream:
    return replicas.submit(prompt, SamplingParams(max_tokens=count))


def owners(replicas: Replicas, stream: TokenStream) -> int:
    return sum(stream in one.engine.requests.streams for one in replicas.members)


async def act(
    action: Action, replicas: Replicas, site: PaperSite, streams: list[TokenStream]
) -> None:
    """Does one of TRAFFIC, where there is what it is for. EngineUnavailable where none serves."""
    what, how = action
    alive = site.alive()
    if what == "submit":
        streams.append(submit(replicas, [len(streams), how], how))
    elif what == "crowd":
        streams += [submit(replicas, [len(streams) + one], 5) for one in range(how)]
    elif what == "step" and alive:
        alive[how % len(alive)].step()
    elif what == "die" and alive:
        alive[how % len(alive)].die()
    elif what == "abort" and streams:
        streams[how % len(streams)].abort()
    elif what == "turns":
        await turns(how)


async def finish(replicas: Replicas, site: PaperSite, streams: list[TokenStream]) -> None:
    """Steps until all streams are over."""

    def step() -> bool:
        for engine in site.alive():
            engine.step()
        return all(stream.finished for stream in streams)

    await until(step)
