"""How long those wait that come later."""

from __future__ import annotations

import pytest

from minisgl.engine.backlog import Backlog


@pytest.mark.parametrize(
    ("waiting", "served", "seconds"),
    [(1000, 1, 5), (4000, 20, 4), (1, 20, 1), (0, 20, 1), (10**9, 20, 60)],
)
def test_what_waits_is_served_as_fast_as_the_prompts_before(
    waiting: int, served: int, seconds: int
) -> None:
    """Twenty prompts of 100 tokens got their first token in two seconds, and so many wait."""
    times = iter([0.0] * served + [2.0])
    backlog = Backlog(lambda: next(times))
    backlog.add(100 * served + waiting)
    for _ in range(served):
        backlog.serve(100)
    assert backlog.tokens == waiting
    assert backlog.seconds() == seconds


def test_what_ended_with_nothing_was_not_served() -> None:
    backlog = Backlog()
    backlog.add(100)
    backlog.add(50)
    backlog.drop(100)
    assert (backlog.tokens, backlog.seconds()) == (50, 5)
