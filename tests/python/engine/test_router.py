"""Which replica the router chooses, and its accounts under any order of events."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from minisgl._native import SentPrefixes
from minisgl.engine.router import SATURATED, Ask, NoReplica, Router

BLOCK = SentPrefixes.BLOCK
ROOM = 100 * BLOCK


def ids(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(0, 100_000) for _ in range(count)]


def make(replicas: int = 2, **options: object) -> Router:
    router = Router(**options)  # type: ignore[arg-type]
    for replica in range(replicas):
        router.add(replica, cache_tokens=ROOM)
    return router


def serve(router: Router, ask: Ask) -> int:
    """Chosen and placed; the replica."""
    chosen = router.choose(ask).replica
    router.placed(ask.id, chosen, ask.tokens)
    return chosen


def end(router: Router, ask: Ask, answer: int = 8) -> None:
    router.progressed(ask.id, answer)
    router.finished(ask.id, [*ask.tokens, *ids(answer, 999)])


def test_without_replicas_nothing_is_chosen() -> None:
    router = make(1)
    with pytest.raises(NoReplica):
        router.choose(Ask(1, [1]), exclude={0})
    router.remove(0)
    with pytest.raises(NoReplica):
        router.choose(Ask(1, [1]))


def test_one_that_begins_alike_goes_where_the_beginning_is() -> None:
    router, prefix = make(4), ids(8 * BLOCK, 1)
    first = Ask(1, prefix + ids(50, 2))
    there = serve(router, first)
    end(router, first)
    for other in range(2, 8):  # the others' turns, too
        decision = router.choose(Ask(other, prefix + ids(50, other)))
        assert (decision.replica, decision.matched_tokens) == (there, 8 * BLOCK)
        assert decision.reason == "prefix"


def test_an_answer_is_found_again_as_part_of_the_next_prompt() -> None:
    router, prompt = make(), ids(3 * BLOCK, 1)
    serve(router, Ask(1, prompt))
    whole = prompt + ids(2 * BLOCK, 2)
    router.finished(1, whole)
    assert router.choose(Ask(2, [*whole, 1, 2, 3])).matched_tokens == 5 * BLOCK


def test_spaces_share_nothing() -> None:
    router, prompt = make(), ids(4 * BLOCK, 1)
    serve(router, Ask(1, prompt, space=b"one"))
    router.finished(1, prompt)
    for space in (b"", b"another", "two"):
        assert router.choose(Ask(2, prompt, space=space)).matched_tokens == 0
    assert router.choose(Ask(2, prompt, space=b"one")).matched_tokens == 4 * BLOCK


def test_many_that_begin_alike_spread_when_the_work_is_more_than_what_they_save() -> None:
    router, prefix = make(4), ids(4 * BLOCK, 1)
    placed = [serve(router, Ask(i, prefix + ids(BLOCK, 10 + i))) for i in range(32)]
    assert all(placed.count(replica) >= 6 for replica in range(4))


def test_one_whose_prompts_wait_gets_no_more_requests_than_one_that_has_computed_them() -> None:
    router = make()
    early = [serve(router, Ask(i, ids(128, i))) for i in range(40)]
    for i, there in enumerate(early):
        if there == 0:
            router.progressed(i, 1)
    late = [serve(router, Ask(i, ids(128, i))) for i in range(40, 60)]
    assert late.count(0) >= late.count(1) > 0


def test_a_session_stays_until_its_replica_is_saturated() -> None:
    router = make(3)
    session = Ask(1, ids(64, 1), session="s")
    there = serve(router, session)
    end(router, session)
    serve(router, Ask(2, ids(SATURATED // 2, 2)))
    moved = Ask(3, ids(64, 3), session="s")
    decision = router.choose(moved)
    assert (decision.replica, decision.reason) == (there, "session")
    router.placed(3, there, moved.tokens)
    end(router, moved)
    router.choose(Ask(4, ids(2 * SATURATED, 4)))
    router.placed(4, there, ids(2 * SATURATED, 4))
    assert router.choose(Ask(5, ids(64, 5), session="s")).replica != there
    assert router.choose(Ask(5, ids(64, 5), session="s", space=b"other")).reason == "least"


def test_a_session_doesn_t_outlive_its_replica() -> None:
    router = make(2)
    there = serve(router, Ask(1, ids(64, 1), session="s"))
    router.remove(there)
    router.add(there, cache_tokens=ROOM)
    assert router.choose(Ask(2, ids(64, 1), session="s")).reason == "least"
    router.finished(1, ids(64, 1))
    assert router.load(there) == 0
    assert router.cached_tokens(there) == 0


def test_least_loaded_and_round_robin() -> None:
    router = make(3, routing="round")
    assert [serve(router, Ask(i, ids(1 + i, i))) for i in range(6)] == [0, 1, 2, 0, 1, 2]
    router = make(3, routing="least")
    prompts = [300, 200, 100, 100, 50]
    assert [serve(router, Ask(i, ids(n, i))) for i, n in enumerate(prompts)] == [0, 1, 2, 2, 1]


def test_one_that_waits_goes_where_it_begins_sooner() -> None:
    router, prefix = make(), ids(8 * BLOCK, 1)
    first = Ask(0, prefix)
    here = serve(router, first)
    end(router, first)
    asks = [Ask(i, prefix + ids(50, i)) for i in (1, 2)]
    for ask in asks:
        assert serve(router, ask) == here
    router.choose(Ask(3, ids(50 * BLOCK, 3)))
    router.placed(3, here, ids(50 * BLOCK, 3))
    assert router.rival(asks[0]) is None  # soon enough
    assert router.rival(asks[0], is_full=True) is not None  # none begins there until one ends
    router.choose(Ask(4, ids(10 * BLOCK, 4)))
    router.placed(4, here, ids(10 * BLOCK, 4))
    assert router.rival(asks[0]) is None  # what is there of its prompt is worth more
    router.choose(Ask(5, ids(20 * BLOCK, 5)))
    router.placed(5, here, ids(20 * BLOCK, 5))
    decision = router.rival(asks[0])
    assert decision is not None
    assert (decision.replica, decision.reason) == (1 - here, "relief")
    assert router.rival(asks[0], {1 - here}) is None
    router.placed(1, 1 - here, asks[0].tokens)
    assert router.rival(asks[0], is_full=True) is None


def test_one_that_waits_at_its_session_s_replica_stays_unless_that_is_saturated() -> None:
    router, ask = make(), Ask(1, ids(50, 1), session="s")
    here = serve(router, ask)
    router.choose(Ask(2, ids(SATURATED // 2, 2)))
    router.placed(2, here, ids(SATURATED // 2, 2))
    assert router.rival(ask) is None
    router.choose(Ask(3, ids(SATURATED, 3)))
    router.placed(3, here, ids(SATURATED, 3))
    assert router.rival(ask) is not None


def test_a_decision_can_be_explained(caplog: pytest.LogCaptureFixture) -> None:
    router = make(2)
    caplog.set_level("DEBUG", "minisgl.engine.router")
    serve(router, Ask(7, ids(100, 1)))
    assert caplog.messages == [
        "request 7 goes to replica 0 (least): 0 of 100 tokens cached; loads {0: 0, 1: 0}"
    ]
    assert router.decisions == {(0, "least"): 1}


def test_what_was_not_chosen_or_is_not_there_is_refused() -> None:
    router = make(2)
    with pytest.raises(ValueError, match="request 1 was placed, but no replica was chosen"):
        router.placed(1, 0, [1])
    router.choose(Ask(1, [1]))
    with pytest.raises(ValueError, match="at replica 5, which is not there"):
        router.placed(1, 5, [1])
    with pytest.raises(ValueError, match="replica 0 is there already"):
        router.add(0, cache_tokens=ROOM)
    router.finished(99, [1])  # ends that come twice are nobody's fault
    router.progressed(99, 1)


class Accounts(RuleBasedStateMachine):
    """Any order of what can happen to a router. The model keeps who runs where and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Router()
        self.bounds: dict[int, int] = {}
        self.runs: dict[int, tuple[int, list[int]]] = {}  # id: replica and tokens
        self.lost: dict[int, list[int]] = {}  # those whose replica was removed
        self.next_id = 0

    @rule(replica=st.integers(0, 4), blocks=st.integers(0, 12))
    def add(self, replica: int, blocks: int) -> None:
        if replica not in self.bounds:
            self.router.add(replica, cache_tokens=blocks * BLOCK + 7)
            self.bounds[replica] = blocks * BLOCK + 7

    @precondition(lambda self: self.bounds)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        replica = data.draw(st.sampled_from(sorted(self.bounds)))
        self.router.remove(replica)
        del self.bounds[replica]
        for id, (there, tokens) in list(self.runs.items()):
            if there == replica:
                del self.runs[id]
                self.lost[id] = tokens

    def run(self, id: int, tokens: list[int], session: str | None, stray: bool) -> None:
        ask = Ask(id, tokens, session=session, max_tokens=16)
        if not self.bounds:
            with pytest.raises(NoReplica):
                self.router.choose(ask)
            return
        decision = self.router.choose(ask)
        assert decision.replica in self.bounds
        assert 0 <= decision.matched_tokens <= min(len(tokens), self.bounds[decision.replica])
        replica = min(self.bounds) if stray else decision.replica
        self.router.placed(id, replica, tokens)
        self.runs[id] = (replica, tokens)
        self.lost.pop(id, None)

    @rule(
        prefix=st.integers(0, 3),
        blocks=st.integers(0, 4),
        rest=st.integers(1, 200),
        session=st.sampled_from([None, "a", "b"]),
        stray=st.booleans(),
    )
    def submit(self, prefix: int, blocks: int, rest: int, session: str | None, stray: bool) -> None:
        tokens = ids(blocks * BLOCK, prefix) + ids(rest, self.next_id)
        self.run(self.next_id, tokens, session, stray)
        self.next_id += 1

    @precondition(lambda self: self.lost)
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.lost)))
        self.run(id, self.lost[id], None, False)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), is_full=st.booleans(), goes=st.booleans())
    def relieve(self, data: st.DataObject, is_full: bool, goes: bool) -> None:
        id = data.draw(st.sampled_from(sorted(self.runs)))
        here, tokens = self.runs[id]
        before = {replica: self.router.load(replica) for replica in self.bounds}
        decision = self.router.rival(Ask(id, tokens), is_full=is_full)
        assert before == {replica: self.router.load(replica) for replica in self.bounds}
        if decision is None or not goes:
            return
        assert decision.replica in self.bounds.keys() - {here}
        self.router.placed(id, decision.replica, tokens)
        self.runs[id] = (decision.replica, tokens)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), count=st.integers(0, 300))
    def progress(self, data: st.DataObject, count: int) -> None:
        id = data.draw(st.sampled_from(sorted(self.runs)))
        replica, tokens = self.runs[id]
        self.router.progressed(id, count)
        self.runs[id] = (replica, tokens + ids(count, 1000 + id))

    @precondition(lambda self: self.runs or self.lost)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted([*self.runs, *self.lost])))
        tokens = self.runs.pop(id)[1] if id in self.runs else self.lost.pop(id)
        self.router.finished(id, tokens)

    @invariant()
    def is_exact(self) -> None:
        assert sorted(self.router.replicas) == sorted(self.bounds)
        busy = {replica for replica, _ in self.runs.values()}
        for replica, bound in self.bounds.items():
            assert self.router.cached_tokens(replica) <= bound
            assert (self.router.load(replica) > 0) == (replica in busy)
        self.router._sent.check()

    def teardown(self) -> None:
        for id, (_, tokens) in self.runs.items():
            self.router.finished(id, tokens)
        assert all(self.router.load(replica) == 0 for replica in self.bounds)


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
