"""A limited process that doesn't come up as it should: what its parent says, and what is left."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from minisgl.text.errors import WorkerLost
from minisgl.text.limited_process import LimitedProcess
from tests.python.waiting import PATIENCE, until


async def start(*command: str, seconds: float = PATIENCE) -> LimitedProcess[bytes]:
    return await LimitedProcess.start("test", command, bytes, 100, seconds)


@pytest.mark.parametrize(
    ("program", "seconds", "sentence"),
    [
        (
            "import sys; sys.exit(3)",
            PATIENCE,
            "the test process did not start: it ended with status 3$",
        ),
        ("input()", 0.2, "the test process took longer than 0.2 s to start$"),
        (
            r"print('\x01\0\0\0a', flush=True); input()",
            PATIENCE,
            "the test process said something else than that it is there$",
        ),
    ],
)
async def test_no_greeting(program: str, seconds: float, sentence: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(WorkerLost, match=sentence):
        await start(sys.executable, "-c", program, seconds=seconds)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_a_program_that_is_not_there() -> None:
    with pytest.raises(WorkerLost, match="^the test process can't be started: .*No such file"):
        await start("/nowhere")


async def test_a_start_that_is_given_up_leaves_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    waiting = asyncio.create_task(start(sys.executable, "-c", "input()"))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.wait({waiting}, timeout=PATIENCE)
    assert waiting.cancelled()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
