"""RankWatch by itself: what it hears and counts, without a clock."""

from __future__ import annotations

from minisgl.engine.watch import GROUP_GRACE_SECONDS, MUTE_TICKS, SILENT_TICKS, RankWatch
from minisgl.ipc.messages import ALIVE_SECONDS, Alive


def watch(step_timeout: float, size: int = 1) -> tuple[RankWatch, list[tuple[int, str]]]:
    lost: list[tuple[int, str]] = []
    ranks = RankWatch(range(size), step_timeout, lambda rank, how: lost.append((rank, how)))
    return ranks, lost


def test_work_that_has_just_begun_is_not_late() -> None:
    ranks, lost = watch(ALIVE_SECONDS)
    for _ in range(100):
        ranks.hear(0, Alive(done=7, working=False))
    for done in range(7, 50):  # the first sign at work comes before anything is done
        ranks.hear(0, Alive(done=done, working=True))
        ranks.hear(0, Alive(done=done + 1, working=False))
    assert not lost


def test_the_limit_is_counted_from_the_first_sign_at_work() -> None:
    for size, seconds in ((1, 30.0), (2, 30.0 + GROUP_GRACE_SECONDS)):
        ranks, lost = watch(30.0, size)
        ranks.hear(0, Alive(done=7, working=False))
        for _ in range(int(seconds / ALIVE_SECONDS)):
            ranks.hear(0, Alive(done=7, working=True))
            assert not lost
        ranks.hear(0, Alive(done=7, working=True))
        assert lost == [(0, "made no progress for 30 s with work to do (--step-timeout)")]


def test_silence_is_counted_in_ticks() -> None:
    ranks, lost = watch(30.0, 2)
    ranks.hear(0, Alive())
    for _ in range(SILENT_TICKS):
        ranks.tick()
    assert not lost
    ranks.tick()
    assert lost.pop() == (0, "gave no sign of life for 7 s")
    for _ in range(MUTE_TICKS - SILENT_TICKS):
        ranks.hear(0, Alive())
        ranks.tick()
    assert lost == [(1, "gave no sign of life for 30 s")]
