"""Tasks and threads that nobody waits for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

T = TypeVar("T")

logger = logging.getLogger(__name__)


def background(
    work: Coroutine[Any, Any, None],
    what: str,
    on_failure: Callable[[str], object] = lambda reason: None,
) -> asyncio.Task[None]:
    """Starts `work` as a task whose result nobody waits for. An exception that ends it is logged,
    and `on_failure` gets a sentence about it: whoever depends on the task must not go on as if it
    were there.

    `what` it is, to follow "in". The caller keeps the task, which the event loop doesn't.
    """
    task = asyncio.create_task(work)

    def note_end(task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        if error := task.exception():
            logger.error("unexpected error in %s", what, exc_info=error)
            on_failure(f"unexpected error in {what}: {error!r}")

    task.add_done_callback(note_end)
    return task


async def in_daemon_thread(work: Callable[[], T], name: str) -> T:
    """What `work` returns or raises. It runs in a thread of its own, for which the end of the
    process doesn't wait, as it does for asyncio.to_thread: for what may hang.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def resolve(result: T | None, error: BaseException | None) -> None:
        if outcome.done():  # nobody waits any more
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(cast("T", result))

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(resolve, result, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await outcome
