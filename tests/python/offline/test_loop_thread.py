"""Coroutines that run on a loop of another thread."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from minisgl.offline.loop_thread import LoopThread


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    loop = LoopThread("test")
    yield loop
    loop.close()


def test_results_and_errors_come_to_the_caller(loop: LoopThread) -> None:
    async def work(fails: bool) -> threading.Thread:
        await asyncio.sleep(0)
        if fails:
            raise LookupError("no such thing")
        return threading.current_thread()

    assert loop.run(work(False)) is not threading.current_thread()
    with pytest.raises(LookupError, match="no such thing"):
        loop.run(work(True))


def test_an_interrupt_cancels_the_work_and_waits_for_its_end(loop: LoopThread) -> None:
    steps: list[str] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            steps.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        loop.run(work())
    assert steps == ["cleaned up"]


def test_an_interrupt_before_the_beginning_leaves_nothing(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_soon, calls = loop._loop.call_soon_threadsafe, iter(range(10))

    def interrupted(*arguments: object) -> object:
        if next(calls) == 0:
            raise KeyboardInterrupt
        return call_soon(*arguments)  # type: ignore[arg-type]

    async def work() -> None:
        pytest.fail("it must not begin")

    monkeypatch.setattr(loop._loop, "call_soon_threadsafe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.run(work())


async def test_a_caller_may_have_a_running_loop(loop: LoopThread) -> None:
    async def work() -> int:
        return 7

    assert loop.run(work()) == 7
