"""Tasks that nobody waits for: none of them ends in silence."""

from __future__ import annotations

import asyncio

import pytest

from minisgl.tasks import background


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
