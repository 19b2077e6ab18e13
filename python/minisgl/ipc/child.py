"""The child's end of a child process: connect to the parent, end with it. See process.py for the
other end.

A child is started with the arguments TO FROM PARENT_PID NAME. It takes the name, connects to the
two addresses, waits for the parent's first message, which configures it, and talks. Its terminal
signals are the parent's business: SIGINT is ignored, SIGTERM from the parent ends it, by force
after FORCED_END_SECONDS, and the kernel kills it when the parent dies: nothing that it holds is
kept outside it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

import uvloop
import zmq
from setproctitle import setproctitle

from minisgl.children import die_with_parent
from minisgl.ipc.queues import (
    Decoder,
    OnMalformed,
    ZmqAsyncPullQueue,
    ZmqAsyncPushQueue,
    as_is,
)
from minisgl.log import start_child_logging
from minisgl.tasks import background

PARENT_CHECK_SECONDS = 1.0
FORCED_END_SECONDS = 3

logger = logging.getLogger(__name__)

Inbound = TypeVar("Inbound")


@dataclass(frozen=True)
class ParentLink(Generic[Inbound]):
    """What a child's main coroutine gets. It is cancelled when the child has to end."""

    name: str  # the child's own
    inbox: ZmqAsyncPullQueue[Inbound]
    outbox: ZmqAsyncPushQueue[Any]


def run_child(
    decoder: Decoder[Inbound],
    main: Callable[[ParentLink[Inbound]], Coroutine[Any, Any, int]],
    on_malformed: Callable[[ZmqAsyncPushQueue[Any]], OnMalformed] | None = None,
) -> NoReturn:
    """Runs `main` between the parent's first word and the end; its result is the process's status.

    `on_malformed` makes, given the outbox, what is called with an inbound message that can't be
    decoded.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if len(sys.argv) != 5 or not sys.argv[3].isdigit():
        print("this program can't be used alone: minisgl-serve starts it", file=sys.stderr)
        sys.exit(2)
    setproctitle(sys.argv[4])
    start_child_logging(sys.argv[4])
    parent_pid = int(sys.argv[3])
    context: zmq.Context[Any] = zmq.Context()

    async def run() -> int:
        task = asyncio.create_task(_talk(context, decoder, main, on_malformed))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, _end, task)
        die_with_parent(signal.SIGKILL)
        watch = background(
            _watch_parent(parent_pid, task), "the watch of the parent", lambda reason: _end(task)
        )
        try:
            return await task
        except asyncio.CancelledError:
            return 0
        finally:
            watch.cancel()

    status = 1
    try:
        status = uvloop.run(run())
        context.term()  # delivers what was put last, for up to the queues' linger
    except Exception:
        logger.exception("unexpected error")
    finally:
        # Native threads may be in the middle of something (loading weights): nothing waits for
        # them.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


async def _talk(
    context: zmq.Context[Any],
    decoder: Decoder[Inbound],
    main: Callable[[ParentLink[Inbound]], Coroutine[Any, Any, int]],
    on_malformed: Callable[[ZmqAsyncPushQueue[Any]], OnMalformed] | None,
) -> int:
    outbox = ZmqAsyncPushQueue[Any](sys.argv[2], False, as_is, context=context)
    inbox = ZmqAsyncPullQueue(
        sys.argv[1],
        False,
        decoder,
        context=context,
        on_malformed=on_malformed(outbox) if on_malformed is not None else None,
    )
    try:
        return await main(ParentLink(sys.argv[4], inbox, outbox))
    finally:
        inbox.close(0)
        outbox.close()


def _end(task: asyncio.Task[int]) -> None:
    """Ends the child in order; the kernel does it by force if that takes too long."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(FORCED_END_SECONDS)
    task.cancel()


async def _watch_parent(parent_pid: int, task: asyncio.Task[int]) -> None:
    """For a parent that died before the kernel was asked."""
    while os.getppid() == parent_pid:  # noqa: ASYNC110 - another process sets no asyncio.Event
        await asyncio.sleep(PARENT_CHECK_SECONDS)
    _end(task)
