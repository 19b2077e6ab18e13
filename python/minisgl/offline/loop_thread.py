"""LoopThread: an event loop in a thread of its own, for callers who have none or must not stop
theirs.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs one coroutine after the other for a thread that waits. Ended by close()."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns or raises. KeyboardInterrupt, which comes to the waiting
        thread, cancels it and is raised when it has ended.
        """
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            task = self._loop.create_task(work)
            task.add_done_callback(lambda task: _pass_on(task, outcome))
            tasks.append(task)

        def cancel() -> None:
            if tasks:
                tasks[0].cancel()
            else:  # the interrupt came before the beginning
                work.close()
                outcome.set_exception(concurrent.futures.CancelledError())

        try:
            self._loop.call_soon_threadsafe(begin)
            return outcome.result()
        except KeyboardInterrupt:
            self._loop.call_soon_threadsafe(cancel)
            concurrent.futures.wait([outcome])
            raise

    def is_current(self) -> bool:
        """Whether the caller runs on the loop."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Ends the thread. Nothing may run."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _pass_on(task: asyncio.Task[T], outcome: concurrent.futures.Future[T]) -> None:
    if task.cancelled():
        outcome.set_exception(concurrent.futures.CancelledError())
    elif error := task.exception():
        outcome.set_exception(error)
    else:
        outcome.set_result(task.result())
