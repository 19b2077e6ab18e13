"""Work for an engine, as much of it at once as the engine takes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

MAX_IN_FLIGHT = 4096  # requests in the engine at once

Item = TypeVar("Item")


async def run_all(
    items: Sequence[Item], work: Callable[[Item], Awaitable[int]], *, unit: str, use_tqdm: bool
) -> None:
    """Has `work`, which returns a number of tokens, done for all items, for as many at once as the
    engine takes.
    """
    from tqdm import tqdm

    waiting = deque(items)
    num_tokens = 0
    with tqdm(total=len(items), unit=unit, disable=not use_tqdm) as bar:

        async def work_through() -> None:
            nonlocal num_tokens
            while waiting:
                num_tokens += await work(waiting.popleft())
                bar.set_postfix(tokens=num_tokens, refresh=False)
                bar.update()

        tasks = [asyncio.create_task(work_through()) for _ in range(min(len(items), MAX_IN_FLIGHT))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
