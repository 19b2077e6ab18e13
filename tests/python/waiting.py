"""What tests wait for, and with what patience."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# Seconds for anything that is sure to come, on a machine that has other things to do. Nobody waits
# for it any longer than it takes.
PATIENCE = 60.0


async def until(condition: Callable[[], object]) -> None:
    """Returns once `condition` is true."""

    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.002)

    await asyncio.wait_for(poll(), PATIENCE)


async def turns() -> None:
    """Lets all that is ready to run on the loop do so, and what becomes ready by that."""
    for _ in range(50):
        await asyncio.sleep(0.001)
