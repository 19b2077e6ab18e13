"""What the HTTP protocol needs of the connection below it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.types import ASGIApp


@dataclass(frozen=True)
class HttpSettings:
    """What is the same for all connections."""

    app: ASGIApp
    head_timeout: float = 30.0  # seconds from a request's first byte to the end of its head


class Wire(Protocol):
    """The connection below. An address is (host, port), or None for a Unix socket's."""

    settings: HttpSettings
    scheme: str
    client: tuple[str, int] | None
    server: tuple[str, int] | None
    # Held for each further turn of what one read brought: all connections together have one at a
    # time, so that those with little to parse don't wait for those with much.
    long_turns: asyncio.Lock

    @property
    def ending(self) -> bool:
        """There is no next request."""
        ...

    def at_work(self) -> None:
        """A request has begun."""
        ...

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs `work` in a task that the connection waits for."""
        ...

    async def write(self, data: bytes) -> None:
        """Sends `data`. Waits while the client takes less than it is sent."""
        ...

    def write_now(self, data: bytes) -> bool:
        """Sends `data` if the client has taken all that it was sent before; else, and where it is
        gone, False, with nothing sent.
        """
        ...

    def write_soon(self, data: bytes) -> None:
        """Sends `data`, which is little, without waiting."""
        ...

    def hung_up(self) -> bool:
        """Whether the client has closed it, though not all that it sent has been read."""
        ...

    def close(self, *, linger: bool) -> None:
        """Ends it once all is sent. `linger`: what the client sends is read for a while."""
        ...
