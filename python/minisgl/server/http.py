"""One HTTP exchange over raw ASGI: a bounded body in, JSON or an event stream out, and the client's
disappearance.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.types import Message, Receive, Scope, Send

from minisgl.server.errors import ApiError, overloaded, too_large

if TYPE_CHECKING:
    from minisgl.server.generation import Generation

SHORT_BODY_S = 0.05  # how long an unread body is waited for before its connection is given up
# How long the rest of a refused body is read, so that the client sees the refusal and not a reset.
LINGER_S = 1.0
STALL_CHECK_S = 10.0
# An ASGI extension of the listener: {"send": sends bytes as a part of a body that has begun}.
CHUNK_EXTENSION = "minisgl.chunk"
WRITE_TIMEOUT_S = 120.0  # a client that takes no byte for that long is given up

CLIENT_GONE = 499  # the status that logs and metrics have for a request that nobody waited for

EVENT_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientGone(Exception):  # noqa: N818
    """The client closed its connection, or reads nothing any more: there is nobody to answer."""


class Exchange:
    """Wraps an ASGI connection's receive and send, and knows how far both have come."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self._receive = receive
        self._send = send
        self._send_chunk = scope.get("extensions", {}).get(CHUNK_EXTENSION, {}).get("send")
        self.request_id = request_id
        self.body_complete = False
        self.response_started = False
        self.status = CLIENT_GONE  # the answer's, once it has begun
        self.generation: Generation | None = None  # what the request makes, for its line in the log
        self.body_hold: BodyHold | None = None  # until the body's text has been tokenized
        self.gone = False
        self._waiting_since: float | None = None  # when the send that is under way began
        self._loop = asyncio.get_running_loop()
        self._headers = [(b"x-request-id", request_id.encode())]

    async def receive(self) -> Message:
        """The next ASGI message of the client's; notes the body's end and the client's."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
        elif not message.get("more_body", False):
            self.body_complete = True
        return message

    async def send(self, message: Message) -> None:
        """Sends an ASGI message of the answer, whose head gets the request's id."""
        if message["type"] == "http.response.start":
            self.response_started = True
            self.status = message["status"]
            headers = list(message.get("headers", ())) + self._headers
            if not self.body_complete and not self.gone:
                await self._finish_body(headers)
            message = {**message, "headers": headers}
        elif not message.get("more_body", False) and not self.body_complete and not self.gone:
            await self._send_last(message)
            return
        self._waiting_since = self._loop.time()
        await self._send(message)
        self._waiting_since = None

    def begin(self, generation: Generation) -> None:
        """The request has been tokenized, and `generation` makes what it asks for."""
        self.generation = generation
        self.release_body()

    def release_body(self) -> None:
        """The body's memory counts no longer. Idempotent."""
        if self.body_hold is not None:
            self.body_hold.release()

    async def send_events(self, events: bytes) -> None:
        """A part of an event stream that start_events() began. Waits while the client is slow: the
        memory of a stream is bounded by the socket's buffers.
        """
        self._waiting_since = self._loop.time()
        if self._send_chunk is not None:
            await self._send_chunk(events)
        else:
            await self._send({"type": "http.response.body", "body": events, "more_body": True})
        self._waiting_since = None

    async def _finish_body(self, headers: list[tuple[bytes, bytes]]) -> None:
        # A request without a body, or with a small one, has its end in the queue already. Where a
        # body is still coming, the connection can't be used again.
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._discard(), SHORT_BODY_S)
        if not self.body_complete and not self.gone:
            headers.append((b"connection", b"close"))

    async def _send_last(self, message: Message) -> None:
        # The server's queue of body parts is bounded and nobody reads it any more: without a
        # reader, the end of the response would wait for ever.
        await self._send({**message, "more_body": True})
        reader = asyncio.ensure_future(self._discard())
        try:
            await asyncio.wait({reader}, timeout=LINGER_S)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            reader.cancel()

    async def _discard(self) -> None:
        while not self.body_complete and not self.gone:
            await self.receive()

    def stalled(self) -> bool:
        """The client has taken nothing for WRITE_TIMEOUT_S."""
        began = self._waiting_since
        return began is not None and self._loop.time() - began > WRITE_TIMEOUT_S

    async def until_gone(self) -> None:
        """Returns when the client has closed its connection."""
        while not self.gone:
            await self.receive()


@dataclass
class BodyRoom:
    """The memory for all bodies that are arriving or wait to be tokenized."""

    limit: int  # bytes
    used: int = 0

    def take(self, count: int) -> None:
        """Raises ApiError 503 where there is no more."""
        if self.used + count > self.limit:
            raise overloaded(self.limit)
        self.used += count

    def hold(self, count: int) -> BodyHold:
        """Counts a body that has arrived until it is let go."""
        return BodyHold(self, count)


class BodyHold:
    """The memory of one body, until release()."""

    def __init__(self, room: BodyRoom, count: int) -> None:
        self._room = room
        self._count = count
        room.used += count

    def release(self) -> None:
        """Idempotent."""
        self._room.used -= self._count
        self._count = 0


async def read_body(
    scope: Scope, receive: Receive, room: BodyRoom, *, max_bytes: int, timeout: float
) -> bytes:
    """The whole body. Raises ApiError 408, 413, 415 or 503, ClientGone."""
    headers = dict(scope["headers"])
    _check_content_type(headers)
    length = headers.get(b"content-length", b"0")
    if len(length) > 18 or int(length) > max_bytes:  # digits only, as the HTTP parser has seen to
        raise _body_too_large(max_bytes)
    try:
        return await asyncio.wait_for(_collect(receive, room, max_bytes), timeout)
    except asyncio.TimeoutError:
        raise ApiError(
            408, f"The request body did not arrive within {timeout:g} seconds.", code="timeout"
        ) from None


async def _collect(receive: Receive, room: BodyRoom, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            if size + len(part) > max_bytes:
                raise _body_too_large(max_bytes)
            if part:
                room.take(len(part))
                size += len(part)
                parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)
    finally:
        room.used -= size


def _body_too_large(max_bytes: int) -> ApiError:
    return too_large(f"The request body is too large (limit {max_bytes} bytes).")


def _check_content_type(headers: Mapping[bytes, bytes]) -> None:
    media_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if media_type not in (b"", b"application/json"):
        raise ApiError(
            415,
            "The request body must be JSON, with 'Content-Type: application/json'.",
            code="unsupported_media_type",
        )
    if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"", b"identity"):
        raise ApiError(
            415, "Compressed request bodies are not supported.", code="unsupported_media_type"
        )


async def send_json(
    send: Send, value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> None:
    """A whole JSON response; `value` is bytes that are JSON already, or anything that msgspec
    encodes.
    """
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    lines = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    lines += [(name.lower().encode(), text.encode()) for name, text in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_error(send: Send, error: ApiError) -> None:
    """A whole response with the error's status and body."""
    await send_json(send, error.body(), status=error.status, headers=error.headers)


async def start_events(send: Send) -> None:
    """The head of an event stream."""
    await send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM_HEADERS})


async def end_events(send: Send) -> None:
    """A clean end. A stream that failed returns without it: the server then cuts the connection,
    which clients see.
    """
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def while_connected(exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
    """Runs `work`, and cancels it when the client is gone; then raises ClientGone."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(exchange.until_gone())
    try:
        while not task.done():
            await asyncio.wait(
                {task, watcher}, timeout=STALL_CHECK_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not task.done() and (watcher.done() or exchange.stalled()):
                raise ClientGone
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    await task
