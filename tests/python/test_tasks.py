"""Tasks that nobody waits for: none of them ends in silence."""

from __future__ import annotations

import asyncio
import sys

import pytest

from minisgl.tasks import background, in_daemon_thread
from tests.python.waiting import PATIENCE


async def work(error: Exception | None) -> None:
    await asyncio.sleep(0)
    if error is not None:
        raise error


async def test_an_exception_is_logged_and_told(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    task = background(work(OSError("no disk")), "the clerk", told.append)
    await asyncio.wait({task})
    await asyncio.sleep(0)
    assert told == ["unexpected error in the clerk: OSError('no disk')"]
    assert "unexpected error in the clerk" in caplog.text
    assert "no disk" in caplog.text


async def test_an_end_and_a_cancellation_are_nothing_to_tell(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[str] = []
    await background(work(None), "the clerk", told.append)
    cancelled = background(asyncio.sleep(60), "the clerk", told.append)
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait({cancelled})
    await asyncio.sleep(0)
    assert told == []
    assert caplog.text == ""


async def test_a_thread_gives_back_what_its_work_returns_or_raises() -> None:
    assert await in_daemon_thread(lambda: 7, "seven") == 7
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(lambda: 1 // 0, "nothing")


async def test_a_thread_that_hangs_keeps_nobody() -> None:
    """asyncio.to_thread in its place would hold up the end of the process for an hour."""
    program = (
        "import asyncio, time\nfrom minisgl.tasks import in_daemon_thread\n"
        "async def main():\n"
        "    hung = in_daemon_thread(lambda: time.sleep(3600), 'hung')\n"
        "    await asyncio.wait_for(hung, 0.1)\n"
        "asyncio.run(main())"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert b"TimeoutError" in errors
