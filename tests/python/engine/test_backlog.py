"""How long those wait that come later."""

from __future__ import annotations

import random

import pytest

from minisgl.engine.backlog import Backlog, SharedBound


@pytest.mark.parametrize(
    ("waiting", "served", "seconds"),
    [(1000, 1, 5), (4000, 20, 4), (1, 20, 1), (0, 20, 1), (10**9, 20, 60)],
)
def test_what_waits_is_served_as_fast_as_the_prompts_before(
    waiting: int, served: int, seconds: int
) -> None:
    """Twenty prompts of 100 tokens got their first token in two seconds, and so many wait."""
    times = iter([0.0] * (1 + served) + [2.0])
    backlog = Backlog(lambda: next(times))
    prompts = [backlog.add(100) for _ in range(served)]
    backlog.add(waiting)
    for prompt in prompts:
        backlog.serve(prompt)
    assert backlog.tokens == waiting
    assert backlog.seconds() == seconds


def test_what_ended_with_nothing_was_not_served() -> None:
    backlog = Backlog()
    prompt = backlog.add(100)
    backlog.add(50)
    backlog.drop(prompt)
    assert (backlog.tokens, backlog.seconds()) == (50, 5)


def test_time_in_which_nothing_waits_does_not_count() -> None:
    """A prompt of 100 tokens per second while some wait, then an idle hour, then a crowd."""
    now = 0.0
    backlog = Backlog(lambda: now)
    for prompt in [backlog.add(100) for _ in range(3)]:
        now += 1
        backlog.serve(prompt)
    now += 3600
    crowd = [backlog.add(100) for _ in range(6)]
    assert backlog.seconds() == 4
    now += 1
    backlog.serve(crowd[0])
    assert backlog.seconds() == 4


def test_a_prompt_of_several_requests_waits_once() -> None:
    backlog = Backlog()
    prompt = backlog.add(100, share=3)
    prompt.requests += 2
    backlog.drop(prompt)
    backlog.drop(prompt)
    assert backlog.tokens == 100
    backlog.drop(prompt)
    assert backlog.tokens == 0
    prompt = backlog.add(100, share=3)
    prompt.requests += 1
    backlog.serve(prompt)
    backlog.serve(prompt)
    assert backlog.tokens == 0
    backlog.drop(prompt)
    backlog.drop(prompt)
    assert (backlog.tokens, backlog.waiting.allows(3, 10, 10)) == (0, True)


def test_a_share_alone_has_the_bound() -> None:
    bound = SharedBound()
    bound.add(1, 100)
    assert not bound.allows(1, 1, 100)
    assert bound.allows(2, 25, 100)  # of the reserve
    assert not bound.allows(2, 26, 100)
    bound.add(2, 25)
    assert not bound.allows(2, 1, 100)
    assert not bound.allows(1, 1, 100)


def test_a_share_has_no_more_of_the_reserve_than_its_part() -> None:
    bound = SharedBound()
    for share in range(9):
        bound.add(share, 10)
    bound.add(0, 20)
    assert bound.allows(9, 10, 100)
    assert not bound.allows(9, 11, 100)
    assert bound.allows(0, 1, 111)  # there is room
    assert not bound.allows(0, 2, 111)


@pytest.mark.parametrize("seed", range(20))
def test_no_share_keeps_another_out_and_the_total_is_bounded(seed: int) -> None:
    """Shares that ask for as much as they can get, at random: one with nothing gets something
    unless the others are all within their parts.
    """
    rng = random.Random(seed)
    limit, bound = rng.randint(8, 60), SharedBound()
    held = dict.fromkeys(range(rng.randint(1, 6)), 0)
    for _ in range(2000):
        share = rng.choice(list(held))
        if rng.random() < 0.4 and held[share]:
            held[share] -= 1
            bound.add(share, -1)
            continue
        allowed = bound.allows(share, 1, limit)
        owners = len({other for other in held if held[other]} | {share})
        if owners == 1:
            assert allowed == (held[share] < limit)
        if not allowed and held[share] < limit // owners:
            assert bound.total >= limit + limit // SharedBound.RESERVE
            assert sum(count for other, count in held.items() if other != share) > limit
        if allowed:
            held[share] += 1
            bound.add(share, 1)
        assert bound.total == sum(held.values()) <= limit + limit // SharedBound.RESERVE
