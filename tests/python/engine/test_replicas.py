"""Streams of several engines of which any may die, come or go at any time."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.engine.api import (
    EngineBusy,
    EngineStartError,
    EngineUnavailable,
    ReplicaRefused,
    ReplicaUnknown,
)
from minisgl.engine.change import Change
from minisgl.engine.group import RankGroup
from minisgl.engine.replicas import Replicas
from minisgl.engine.revival import RestartPolicy
from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import EngineInfo, Output
from minisgl.sampling_params import PoolingParams, SamplingParams, pooled_params
from tests.python.engine.paper_engines import (
    PaperSite,
    answer,
    paper_changes,
    paper_replicas,
    turns,
)
from tests.python.engine.paper_traffic import (
    TRAFFIC,
    Action,
    act,
    finish,
    owners,
    submit,
    until,
)
from tests.python.waiting import PATIENCE


def check(replicas: Replicas, streams: list[TokenStream]) -> None:
    """Each stream has one owner while it is live, and has got a part of what it is to get."""
    for stream in streams:
        expected = answer(stream.request.prompt, stream.request.params.max_tokens)
        assert stream.received == expected[: len(stream.received)]
        if not stream.finished:
            assert owners(replicas, stream) == 1
        elif stream.finish == "length":
            assert stream.received == expected


ACTIONS = st.one_of(
    TRAFFIC,
    st.tuples(st.just("add"), st.just(0)),
    st.tuples(st.just("remove"), st.integers(0, 5)),
    st.tuples(st.just("restart"), st.integers(0, 5)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ACTIONS, max_size=40))
def test_whatever_dies_comes_and_goes_each_stream_has_all_its_tokens_once(
    actions: list[Action],
) -> None:
    logging.disable(logging.CRITICAL)
    try:
        asyncio.run(run(actions))
    finally:
        logging.disable(logging.NOTSET)


async def run(actions: list[Action]) -> None:
    site = PaperSite()
    replicas = paper_replicas(site, 2)
    changes = paper_changes(replicas)
    begun: list[Change] = []
    streams: list[TokenStream] = []
    await replicas.start(None)
    for action in actions:
        what, how = action
        try:
            if what == "add":
                begun.append(changes.add())
            elif what == "remove":
                begun.append(changes.remove(how, 0))
            elif what == "restart":
                begun.append(changes.restart(how, 0))
            else:
                await act(action, replicas, site, streams)
        except (EngineUnavailable, ReplicaRefused, ReplicaUnknown):
            pass  # said at once, and nothing has begun
        check(replicas, streams)
    await finish(replicas, site, streams)
    check(replicas, streams)
    for change in begun:
        # One that dies while it starts isn't added.
        last = [event async for event in change.events()][-1]["state"]
        assert last in ("ready", "removed", "failed")
    assert {stream.finish for stream in streams} <= {"length", "abort"}
    await until(lambda: replicas.num_live == 0)
    assert replicas.num_replaying == replicas.waiting_tokens == 0
    assert site.taken == {one.number for one in replicas.members}
    await changes.close()
    await replicas.close()


async def test_streams_of_a_dead_replica_go_on_elsewhere_at_once() -> None:
    site = PaperSite()
    replicas = paper_replicas(site, 3)
    await replicas.start(None)
    await until(lambda: len(site.engines) == 3)
    streams = [submit(replicas, [number], 20) for number in range(9)]
    held = {number: set(engine.requests) for number, engine in site.engines.items()}
    assert all(held.values())
    for engine in site.alive():
        engine.step()
    site.engines[1].die()
    assert replicas.state == "ready"
    taken_on = set(site.engines[0].requests) | set(site.engines[2].requests)
    assert held[1] <= taken_on
    check(replicas, streams)
    await until(lambda: site.engines[1].alive)
    await finish(replicas, site, streams)
    check(replicas, streams)
    assert replicas.num_restarts == 1
    changes = paper_changes(replicas)
    async for _ in changes.restart(1, 0).events():
        pass
    assert replicas.num_restarts == 1  # a counter: what an operator changes doesn't lessen it
    await replicas.close()


async def test_an_embedding_of_a_dead_replica_is_made_by_another() -> None:
    site = PaperSite()
    replicas = paper_replicas(site, 2)
    await replicas.start(None)
    await until(lambda: len(site.engines) == 2)
    prompts = [[number] * 5 for number in range(6)]
    streams = [replicas.submit(prompt, pooled_params(PoolingParams())) for prompt in prompts]
    for _ in range(3):
        for engine in site.alive():
            engine.step()
    lost = set(site.engines[1].requests)
    assert lost
    site.engines[1].die()
    assert lost <= set(site.engines[0].requests)
    await finish(replicas, site, streams)
    outputs = [await stream.next() for stream in streams]
    assert [output.embedding for output in outputs] == list(map(bytes, prompts))
    assert {output.finish for output in outputs} == {"stop"}
    await replicas.close()


@pytest.mark.parametrize(("prefix_cache", "spread"), [(True, [0, 0, 6]), (False, [2, 2, 2])])
async def test_requests_that_begin_alike_share_a_replica_that_keeps_what_it_computed(
    prefix_cache: bool, spread: list[int]
) -> None:
    site = PaperSite(prefix_cache=prefix_cache)
    replicas = paper_replicas(site, 3)
    await replicas.start(None)
    await until(lambda: len(site.engines) == 3)
    streams = [submit(replicas, [7] * 3000 + [number], 5) for number in range(6)]
    assert sorted(len(engine.requests) for engine in site.alive()) == spread
    await finish(replicas, site, streams)
    await replicas.close()


async def test_a_session_stays_at_its_replica() -> None:
    site = PaperSite()
    replicas = paper_replicas(site, 3)
    await replicas.start(None)
    await until(lambda: len(site.engines) == 3)
    params = SamplingParams(max_tokens=5)
    streams = [replicas.submit([number], params, session="one") for number in range(6)]
    assert sorted(len(engine.requests) for engine in site.alive()) == [0, 0, 6]
    next(engine for engine in site.alive() if engine.requests).die()
    assert sorted(len(engine.requests) for engine in site.alive()) == [0, 6]
    await finish(replicas, site, streams)
    await replicas.close()


async def test_one_that_is_added_gets_what_waits_at_another() -> None:
    site = PaperSite()
    replicas = paper_replicas(site, 1)
    changes = paper_changes(replicas)
    await replicas.start(None)
    streams = [submit(replicas, [number], 20) for number in range(10)]  # 4 run
    change = changes.add()
    await until(lambda: len(site.alive()) == 2 and replicas.info.max_running == 8)
    old, new = site.alive()
    assert not new.requests
    old.step()
    assert set(new.requests) == {6, 7, 8, 9}  # those that came last, as many as may run
    check(replicas, streams)
    await turns()
    assert set(old.requests) == {0, 1, 2, 3, 4, 5}  # it has let them go
    assert replicas.num_replaying == 0
    assert {one.number: dict(one.chosen) for one in replicas.replicas} == {
        0: {"only": 10},
        1: {"relief": 4},
    }
    await finish(replicas, site, streams)
    check(replicas, streams)
    assert [event["state"] async for event in change.events()][-1] == "ready"
    await replicas.close()


async def test_one_that_has_room_again_gets_what_waits_at_another() -> None:
    site = PaperSite(prefix_cache=False)
    replicas = paper_replicas(site, 2)
    await replicas.start(None)
    await until(lambda: len(site.engines) == 2)
    short = [submit(replicas, [number], 1 if number % 2 else 20) for number in range(8)]
    long = [submit(replicas, [number], 20) for number in range(8, 12)]
    ends_soon = site.engines[1]
    assert {0, 2, 4, 6} < set(site.engines[0].requests)
    ends_soon.step()  # four of its six
    await turns()
    assert len(ends_soon.requests) == 2
    site.engines[0].step()
    assert len(ends_soon.requests) == 4
    await turns()
    assert len(site.engines[0].requests) == 4
    await finish(replicas, site, short + long)
    check(replicas, short + long)
    await replicas.close()


async def test_one_that_was_moved_and_comes_back_is_begun_once() -> None:
    site = PaperSite()
    replicas = paper_replicas(site, 1)
    changes = paper_changes(replicas)
    await replicas.start(None)
    streams = [submit(replicas, [number], 20) for number in range(6)]
    changes.add()
    await until(lambda: len(site.alive()) == 2 and replicas.info.max_running == 8)
    old, new = site.alive()
    old.step()
    assert set(new.requests) == {4, 5}
    new.step()
    new.die()  # before the old one has let them go: an id is one request's
    streams[4].abort()
    old.step()
    check(replicas, streams)
    await turns()
    assert set(old.requests) == {0, 1, 2, 3, 5}
    await finish(replicas, site, streams)
    check(replicas, streams)
    assert streams[4].finish == "abort"
    await until(lambda: replicas.num_live == 0)
    await changes.close()
    await replicas.close()


async def test_streams_wait_where_no_replica_is_left_and_the_first_that_comes_has_all() -> None:
    site = PaperSite()
    replicas = paper_replicas(site, 2, restart=RestartPolicy(first_delay=0.01, max_replays=9))
    await replicas.start(None)
    await until(lambda: len(site.engines) == 2)
    streams = [submit(replicas, [number], 20) for number in range(8)]
    site.broken = True
    for engine in site.alive():
        engine.die()
    assert replicas.state == "restarting"
    with pytest.raises(EngineUnavailable):
        submit(replicas, [1], 1)
    check(replicas, streams)
    site.broken = False
    await until(lambda: replicas.state == "ready")
    check(replicas, streams)
    assert len(site.alive()[0].requests) == len(streams)
    await finish(replicas, site, streams)
    check(replicas, streams)
    await replicas.close()


async def test_what_waits_is_bounded_over_all_and_by_what_is_left() -> None:
    site = PaperSite()
    replicas = paper_replicas(site, 2, max_waiting=1)
    await replicas.start(None)
    await until(lambda: len(site.engines) == 2)
    streams = [submit(replicas, [number], 20) for number in range(9)]  # 2 x 4 run, 1 waits
    with pytest.raises(EngineBusy, match="9 requests are waiting or running, of at most 9"):
        submit(replicas, [1], 1)
    site.engines[0].die()
    with pytest.raises(EngineBusy, match="of at most 5"):
        submit(replicas, [1], 1)
    await finish(replicas, site, streams)
    check(replicas, streams)
    await replicas.close()


async def test_a_request_that_kills_each_engine_ends_and_the_others_go_on() -> None:
    site = PaperSite()
    replicas = paper_replicas(site, 3, restart=RestartPolicy(first_delay=0, max_replays=1))
    await replicas.start(None)
    await until(lambda: len(site.engines) == 3)
    poison = submit(replicas, [1], 20)
    for _ in range(2):
        next(engine for engine in site.alive() if poison.id in engine.requests).die()
    assert (poison.finish, (await poison.next()).error_code) == ("error", "engine_failure")
    assert replicas.state == "ready"
    await replicas.close()


async def test_last_words_of_a_dead_engine_are_not_heard_twice() -> None:
    site = PaperSite()
    replicas = paper_replicas(site, 2)
    await replicas.start(None)
    await until(lambda: len(site.engines) == 2)
    stream = submit(replicas, [5], 6)
    owner = next(engine for engine in site.alive() if stream.id in engine.requests)
    other = next(engine for engine in site.alive() if engine is not owner)
    owner.die()
    owner.say(Output(stream.id, [999]))
    other.step()
    assert stream.received == answer([5], 1)
    await finish(replicas, site, [stream])
    check(replicas, [stream])
    await replicas.close()


async def test_one_that_fails_again_and_again_is_tried_while_others_serve(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = PaperSite()
    policy = RestartPolicy(max_failures=1, first_delay=0, open_delay=0.01)
    replicas = paper_replicas(site, 2, restart=policy)
    await replicas.start(None)
    await until(lambda: len(site.engines) == 2)
    site.broken = True
    site.engines[0].die()
    await until(lambda: "(failure 3 in a row)" in caplog.text)
    assert replicas.state == "ready"
    site.broken = False
    await until(lambda: site.engines[0].alive)
    site.broken = True
    for engine in site.alive():
        engine.die()
    assert "the paper is wet" in await asyncio.wait_for(replicas.wait_failed(), PATIENCE)
    assert replicas.state == "failed"
    await replicas.close()


async def test_one_killed_in_its_first_start_is_started_again_while_others_serve() -> None:
    site = PaperSite(held={1})
    replicas = paper_replicas(site, 2)
    await replicas.start(None)
    streams = [submit(replicas, [number], 5) for number in range(4)]
    await until(lambda: 1 in site.engines)
    held = site.engines[1]
    assert replicas.replicas[1].state == "starting"
    site.held.clear()
    held.die()
    await until(lambda: site.engines[1] is not held and site.engines[1].alive)
    await until(lambda: replicas.replicas[1].state == "ready")
    check(replicas, streams)
    assert len(site.engines[0].requests) == len(streams)  # nothing moved
    added = [submit(replicas, [number], 5) for number in range(4)]
    await finish(replicas, site, [*streams, *added])
    assert replicas.num_restarts == 1
    await replicas.close()


async def test_one_that_dies_as_soon_as_it_is_ready_is_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = PaperSite()
    replicas = paper_replicas(site, 2)
    await replicas.start(None)
    await until(lambda: len(site.engines) == 2)
    site.short_lived = True
    site.engines[0].die()
    await until(lambda: replicas.num_restarts > 5)
    streams = [submit(replicas, [number], 20) for number in range(4)]
    assert all(owners(replicas, stream) == 1 for stream in streams)
    site.short_lived = False
    await until(lambda: site.engines[0].alive)
    assert "unexpected error" not in caplog.text
    await finish(replicas, site, streams)
    check(replicas, streams)
    await replicas.close()


async def test_the_server_is_ready_with_the_first_and_fails_where_none_starts() -> None:
    site = PaperSite(room=1)
    with pytest.raises(EngineStartError, match="--replicas 2 is too much .* all paper is"):
        await paper_replicas(site, 2).start(None)
    broken = paper_replicas(PaperSite(broken=True), 2)
    with pytest.raises(EngineStartError, match="the paper is wet"):
        await broken.start(None)
    await broken.close()


async def test_an_unforeseen_error_while_replicas_start_is_told_like_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def start(group: RankGroup) -> list[EngineInfo]:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(RankGroup, "start", start)
    replicas = paper_replicas(PaperSite(), 2)
    with pytest.raises(EngineStartError, match="nobody thought of this"):
        await asyncio.wait_for(replicas.start(None), PATIENCE)
    await replicas.close()


async def test_a_long_request_stays_where_others_could_not_hold_it() -> None:
    site = PaperSite()
    replicas = paper_replicas(site, 1)
    changes = paper_changes(replicas)
    await replicas.start(None)
    long, short = submit(replicas, [1], 500), submit(replicas, [2], 50)
    site.max_model_len = 100
    change = changes.add()
    await until(lambda: len(site.engines) == 2 and replicas.info.max_model_len == 100)
    with pytest.raises(ValueError, match="more than the 100 tokens"):
        submit(replicas, [1], 500)
    site.engines[0].die()
    assert list(site.engines[1].requests) == [short.id]
    await until(lambda: site.engines[0].alive)
    assert [event["state"] async for event in change.events()][-1] == "ready"
    await finish(replicas, site, [long, short])
    check(replicas, [long, short])
    await replicas.close()


async def test_what_cannot_be_changed_is_refused_with_a_sentence() -> None:
    site = PaperSite(room=2)
    replicas = paper_replicas(site, 1)
    changes = paper_changes(replicas)
    await replicas.start(None)
    with pytest.raises(ReplicaRefused, match="replica 0 can't be removed: no other one serves"):
        changes.remove(0, 0)
    with pytest.raises(ReplicaUnknown, match="no replica 7"):
        changes.remove(7, 0)
    added = changes.add()
    with pytest.raises(ReplicaRefused, match="replica 1 is being added"):
        changes.remove(1, 0)
    with pytest.raises(ReplicaRefused, match="all paper is written on"):
        changes.add()
    assert [event["state"] async for event in added.events()] == ["starting", "ready"]
    stream = submit(replicas, [3], 10)
    events = [event async for event in changes.remove(0, 0).events()]
    assert events[-1] == {"replica": 0, "state": "removed"}
    with pytest.raises(ReplicaUnknown):
        changes.restart(0, 0)
    await finish(replicas, site, [stream])
    check(replicas, [stream])
    site.broken = True
    failed = [event async for event in changes.add().events()]
    assert failed[-1]["state"] == "failed"
    assert "the paper is wet" in failed[-1]["reason"]
    assert [one.number for one in replicas.members] == [1]
    await replicas.drain(1)
    with pytest.raises(ReplicaRefused, match="the server is ending"):
        changes.add()
    await replicas.close()
