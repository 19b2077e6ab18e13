"""Queues between processes, the messages they carry, and the two ends of a child process.

The queues are loaded when first used: messages alone need no ZeroMQ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minisgl.ipc.queues import (
        ZmqAsyncPubQueue,
        ZmqAsyncPullQueue,
        ZmqAsyncPushQueue,
        ZmqAsyncSubQueue,
        ZmqPubQueue,
        ZmqPullQueue,
        ZmqPushQueue,
        ZmqSubQueue,
    )

__all__ = [
    "ZmqAsyncPubQueue",
    "ZmqAsyncPullQueue",
    "ZmqAsyncPushQueue",
    "ZmqAsyncSubQueue",
    "ZmqPubQueue",
    "ZmqPullQueue",
    "ZmqPushQueue",
    "ZmqSubQueue",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'minisgl.ipc' has no attribute {name!r}")
    from minisgl.ipc import queues

    return getattr(queues, name)


def __dir__() -> list[str]:
    return sorted(__all__)
