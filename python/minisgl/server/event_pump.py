"""Streams whose client takes all that it is sent: what a step made for them is written in one turn
of the loop, without a task per stream being woken.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from minisgl.server.stream_shape import Events, TextEvents

if TYPE_CHECKING:
    from collections.abc import Callable

    from minisgl.server.generation import Generation
    from minisgl.server.plain_text import PlainText


class EventPump:
    """All such streams of a server."""

    def __init__(self) -> None:
        self._ready: list[PumpedStream] = []

    def add(self, stream: PumpedStream) -> None:
        """The stream has something: its step() is called soon, beside those of all others that have
        something by then.
        """
        if not self._ready:
            asyncio.get_running_loop().call_soon(self._turn)
        self._ready.append(stream)

    def _turn(self) -> None:
        ready, self._ready = self._ready, []
        now = time.perf_counter()
        for stream in ready:
            stream.step(now)


class PumpedStream:
    """One stream, while its client takes all that it is sent."""

    def __init__(
        self,
        pump: EventPump,
        generation: Generation,
        events: Events,
        send_now: Callable[[bytes], bool],
    ) -> None:
        """`send_now` sends events if it doesn't have to wait, or returns False and has sent
        nothing.
        """
        self._pump = pump
        self._generation = generation
        self._event = events.event
        self._send_now = send_now
        self._left: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._text: PlainText | None = None
        if isinstance(events, TextEvents):
            self._text = generation.plain_text(events)

    async def run(self) -> bytes:
        """Sends what is made until the client is slow or the generation is over; returns the events
        that come next and are to be sent by a way that waits. Raises ApiError when a choice failed.
        """
        self._generation.listen(partial(self._pump.add, self))
        try:
            return await self._left
        finally:
            self._generation.listen(None)
            if self._text is not None:
                self._text.leave()

    def step(self, now: float) -> None:
        """Sends what there is; `now` is time.perf_counter(). What it raises is raised by run()."""
        if self._left.done():
            return
        try:
            data = None if self._text is None else self._text.take(now)
            over = False
            if data is None:
                deltas = self._generation.take()
                event = self._event
                data = event(deltas[0]) if len(deltas) == 1 else b"".join(map(event, deltas))
                over = not self._generation.num_live
            if over or (data and not self._send_now(data)):
                self._left.set_result(data)
        except Exception as error:
            self._left.set_exception(error)
