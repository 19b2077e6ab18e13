"""Tasks that nobody waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

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
