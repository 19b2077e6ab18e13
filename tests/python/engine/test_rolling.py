"""All replicas are replaced by some with another model, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.engine import change as change_module
from minisgl.engine.api import EngineUnavailable, ReplicaRefused, ReplicaUnknown
from minisgl.engine.change import Change
from minisgl.engine.changes import Changes
from minisgl.engine.revival import RestartPolicy
from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import NamedModel
from tests.python.engine.paper_engines import (
    PaperSite,
    PaperSuccessors,
    answer,
    paper_replicas,
)
from tests.python.engine.paper_traffic import TRAFFIC, Action, act, finish, owners, submit, until

OLD, NEW = "paper", "parchment"


class Stage:
    """Replicas of the old model that serve, and what becomes of them."""

    def __init__(self, count: int, room: int, restart: RestartPolicy | None = None) -> None:
        self.count = count
        self.site = PaperSite(room=room)
        self.replicas = paper_replicas(self.site, count, restart=restart)
        self.successors = PaperSuccessors()
        self.changes = Changes(self.replicas, self.successors)

    async def __aenter__(self) -> Stage:
        await self.replicas.start(None)
        await until(lambda: len(self.site.engines) == self.count)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.changes.close()
        await self.replicas.close()

    def replace(self, model: str = NEW, limit: float = 60.0) -> Change:
        return self.changes.replace(NamedModel(model), limit)

    @property
    def models(self) -> dict[int, str]:
        return {one.number: one.model for one in self.replicas.replicas}

    async def finish(self, streams: list[TokenStream]) -> None:
        await finish(self.replicas, self.site, streams)


async def states(change: Change) -> list[str]:
    """What it says from beginning to end, each with the replica that it is about."""
    events = [event async for event in change.events()]
    said = [f"{event.get('replica', '')} {event['state']}".strip() for event in events]
    return [state for state, _ in itertools.groupby(said)]


async def last(change: Change) -> dict[str, Any]:
    return dict([event async for event in change.events()][-1])


def model_of(stream: TokenStream) -> str:
    """The model of whose answer a stream has the beginning; with tokens of two there is none."""
    got = stream.received
    return next(
        model for model in (OLD, NEW) if got == answer(stream.request.prompt, len(got), model)
    )


@pytest.fixture(autouse=True)
def quick_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_module, "REPORT_SECONDS", 0.01)


@pytest.fixture
async def full() -> AsyncIterator[Stage]:
    """Two replicas on a host that has no room for another one."""
    async with Stage(2, room=2) as stage:
        yield stage


async def test_where_there_is_room_the_new_one_comes_first() -> None:
    async with Stage(2, room=3) as stage:
        stream = submit(stage.replicas, [7], 30)
        change = stage.replace()
        await until(lambda: 2 in stage.models and stage.models[2] == NEW)
        assert len(stage.site.alive()) == 3
        await stage.finish([stream])
        told = await states(change)
        assert told == [
            *("searching", "2 starting", "2 ready", "0 draining", "0 removed"),
            *("3 starting", "3 ready", "1 draining", "1 removed", "replaced"),
        ]
        assert stage.models == {2: NEW, 3: NEW}
        assert [model.path for model in stage.successors.adopted] == [NEW]
        assert stage.site.taken == {2, 3}


async def test_without_room_each_is_replaced_where_it_is_and_streams_stay_with_their_model(
    full: Stage,
) -> None:
    streams = [submit(full.replicas, [number], 40) for number in range(6)]
    for engine in full.site.alive():
        engine.step()
    change = full.replace()
    # All that have begun go on at the last one of their model, which waits for their end.
    await until(lambda: full.models[0] == NEW and full.replicas.members[1].leaving)
    assert full.site.engines[1].requests.keys() == {stream.id for stream in streams}
    late = submit(full.replicas, [100], 5)
    assert late.id in full.site.engines[0].requests
    await full.finish([*streams, late])
    assert (await states(change))[-1] == "replaced"
    assert [model_of(stream) for stream in streams] == [OLD] * 6
    assert all(len(stream.received) == 40 for stream in streams)
    assert (model_of(late), full.models) == (NEW, {0: NEW, 1: NEW})


async def test_a_stream_that_has_nothing_yet_may_begin_with_the_new_model(full: Stage) -> None:
    streams = [submit(full.replicas, [number], 20) for number in range(6)]
    assert (await states(full.replace()))[-1] == "replaced"  # nobody had to wait for them
    await full.finish(streams)
    assert [model_of(stream) for stream in streams] == [NEW] * 6


async def test_the_last_one_that_dies_starts_again_with_the_old_model_for_its_streams(
    full: Stage,
) -> None:
    stream = submit(full.replicas, [3], 30)
    next(one for one in full.site.alive() if stream.id in one.requests).step()
    change = full.replace()
    await until(lambda: full.models[0] == NEW and full.replicas.members[1].leaving)
    for _ in range(3):
        full.site.engines[1].die()
        await until(lambda: full.site.engines[1].alive)
        full.site.engines[1].step()
        assert owners(full.replicas, stream) == 1
    full.site.engines[0].die()  # the new one: nothing of it is mixed up with the stream
    await full.finish([stream])
    assert (model_of(stream), len(stream.received)) == (OLD, 30)
    assert (await states(change))[-1] == "replaced"
    assert full.models == {0: NEW, 1: NEW}


async def test_streams_that_do_not_end_in_time_end_with_an_error(full: Stage) -> None:
    stream = submit(full.replicas, [3], 30)
    next(one for one in full.site.alive() if stream.id in one.requests).step()
    assert (await states(full.replace(limit=0.05)))[-1] == "replaced"
    output = await stream.next(whole=True)
    assert (output.finish, output.error_code) == ("error", "replaced")
    assert model_of(stream) == OLD
    assert full.replicas.num_live == full.replicas.waiting_tokens == 0


@pytest.mark.parametrize("room", [2, 3])
async def test_a_new_one_that_cannot_start_stops_it_and_the_others_serve_on(room: int) -> None:
    async with Stage(2, room) as stage:
        streams = [submit(stage.replicas, [number], 20) for number in range(4)]
        for engine in stage.site.alive():
            engine.step()
        stage.site.bad_models.add(NEW)
        event = await last(stage.replace())
        assert event["state"] == "failed"
        assert event["reason"].startswith("replica 0 can't be replaced: the engine process can't")
        assert event["reason"].endswith("0 of 2 replicas are replaced, the others stay as they are")
        assert stage.models == {0: OLD, 1: OLD}
        assert len(stage.site.alive()) == len(stage.site.taken) == 2
        assert stage.successors.adopted == []
        await stage.finish(streams)
        assert {model_of(stream) for stream in streams} == {OLD}
        # Nothing is left of it: replicas are added with the model that is served, or replaced.
        await last(stage.changes.restart(0, 0))
        stage.site.bad_models.clear()
        assert (await last(stage.replace()))["state"] == "replaced"


@pytest.mark.parametrize("room", [2, 3])
async def test_a_model_that_holds_less_is_not_let_in(room: int) -> None:
    async with Stage(2, room) as stage:
        event = await last(stage.replace("short"))
        assert "its longest request has 10 tokens, fewer than the 10000" in event["reason"]
        assert stage.models == {0: OLD, 1: OLD}
        assert stage.replicas.info.max_model_len == 10_000
        assert len(stage.site.alive()) == 2


async def test_one_that_fails_in_the_middle_leaves_those_before_it_with_the_new_model(
    full: Stage,
) -> None:
    change = full.replace()
    await until(lambda: full.models[0] == NEW)
    full.site.bad_models.add(NEW)
    event = await last(change)
    assert event["reason"].endswith("1 of 2 replicas are replaced, the others stay as they are")
    assert full.models == {0: NEW, 1: OLD}
    full.site.bad_models.clear()
    streams = [submit(full.replicas, [number], 20) for number in range(6)]
    for _ in range(3):
        for engine in full.site.alive():
            engine.step()
    # Each replica starts again with its own model, and has its own streams again.
    for number in (0, 1):
        full.site.engines[number].die()
        await until(lambda number=number: full.site.engines[number].alive)  # type: ignore[misc]
    await full.finish(streams)
    assert {model_of(stream) for stream in streams} == {OLD, NEW}
    assert all(len(stream.received) == 20 for stream in streams)
    full.site.room = 3
    await last(full.changes.add())
    assert full.models == {0: NEW, 1: OLD, 2: OLD}  # that of all, until all have the new one


async def test_replicas_that_come_later_have_the_new_model(full: Stage) -> None:
    await last(full.replace())
    full.site.room = 3
    await last(full.changes.add())
    await last(full.changes.restart(1, 0))
    full.site.engines[0].die()
    await until(lambda: full.site.engines[0].alive)
    assert full.models == {0: NEW, 1: NEW, 2: NEW}
    streams = [submit(full.replicas, [number], 5) for number in range(6)]
    await full.finish(streams)
    assert {model_of(stream) for stream in streams} == {NEW}


async def test_what_is_refused_changes_nothing() -> None:
    async with Stage(1, room=1) as stage:
        event = await last(stage.replace("none"))
        assert event["reason"] == "there is no model at 'none'; nothing has changed"
        event = await last(stage.replace())
        assert "no other one serves, and there is no room for one beside it" in event["reason"]
        assert stage.models == {0: OLD}
        stage.successors.found.clear()
        change = stage.replace()
        with pytest.raises(ReplicaRefused, match="all replicas are being replaced already"):
            stage.replace()
        stage.site.room = 3
        await last(stage.changes.add())  # while the model is looked for
        stage.successors.found.set()
        await until(lambda: "parchment" in stage.models.values())
        with pytest.raises(ReplicaRefused, match="nothing else changes meanwhile"):
            stage.changes.add()
        assert (await last(change))["state"] == "replaced"
        assert stage.models == {2: NEW, 3: NEW}
        await stage.replicas.drain(1)
        with pytest.raises(ReplicaRefused, match="the server is ending"):
            stage.replace()


async def test_streams_end_where_nobody_will_ever_serve_their_model() -> None:
    policy = RestartPolicy(max_failures=1, first_delay=0, open_delay=0.01)
    async with Stage(2, room=2, restart=policy) as stage:
        change = stage.replace()
        await until(lambda: stage.models[0] == NEW)
        stage.site.bad_models.add(NEW)
        assert (await last(change))["state"] == "failed"
        streams = [submit(stage.replicas, [number], 20) for number in range(6)]
        for engine in stage.site.alive():
            engine.step()
        assert stage.models == {0: NEW, 1: OLD}
        stage.site.engines[0].die()
        await until(lambda: any(stream.finished for stream in streams))
        assert {stream.finish for stream in streams if model_of(stream) == NEW} == {"error"}
        stage.site.bad_models.clear()
        await stage.finish(streams)
        assert {stream.finish for stream in streams if model_of(stream) == OLD} == {"length"}


ACTIONS = st.one_of(
    TRAFFIC,
    st.tuples(st.just("break"), st.integers(0, 1)),
    st.tuples(st.just("other"), st.integers(0, 5)),
    st.tuples(st.just("replace"), st.just(0)),
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(0, 1), st.lists(ACTIONS, max_size=40))
def test_each_stream_has_all_tokens_of_one_model_once_whatever_dies_while_all_are_replaced(
    count: int, spare: int, actions: list[Action]
) -> None:
    logging.disable(logging.CRITICAL)
    try:
        asyncio.run(play(Stage(count, count + spare), actions))
    finally:
        logging.disable(logging.NOTSET)


async def play(stage: Stage, actions: list[Action]) -> None:
    streams: list[TokenStream] = []
    begun: list[Change] = []
    async with stage:
        for action in [("replace", 0), *actions]:
            what, how = action
            try:
                if what == "break":
                    stage.site.bad_models = {NEW} if how else set()
                elif what == "other":
                    begun.append(stage.changes.restart(how, 0))
                elif what == "replace":
                    begun.append(stage.replace())
                else:
                    await act(action, stage.replicas, stage.site, streams)
            except (EngineUnavailable, ReplicaRefused, ReplicaUnknown):
                pass  # said at once, and nothing has begun
            check(stage, streams)
        stage.site.bad_models.clear()
        await stage.finish(streams)
        check(stage, streams)
        for change in begun:
            assert (await last(change))["state"] in ("ready", "replaced", "failed")
        assert {stream.finish for stream in streams} <= {"length", "abort"}
        await until(lambda: stage.replicas.num_live == 0)
        assert stage.replicas.num_replaying == stage.replicas.waiting_tokens == 0
        assert stage.site.taken == set(stage.models)
        assert len(stage.models) == stage.count


def check(stage: Stage, streams: list[TokenStream]) -> None:
    """Each stream has one owner, of its own model, while it is live."""
    for stream in streams:
        model = model_of(stream)
        if stream.finish == "length":
            assert len(stream.received) == stream.request.params.max_tokens
        elif not stream.finished:
            assert owners(stage.replicas, stream) == 1
            (owner,) = (
                one for one in stage.replicas.members if stream in one.engine.requests.streams
            )
            assert not stream.received or owner.model.name == model
