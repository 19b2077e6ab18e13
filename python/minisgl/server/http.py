"""One HTTP exchange over raw ASGI: a bounded body in, JSON or an event stream out, and the client's
disappearance.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from minisgl.server.dialects import OPENAI
from minisgl.server.errors import ApiError, overloaded, too_large

if TYPE_CHECKING:
    from minisgl.server.event_pump import EventPump
    from minisgl.server.request_log import Work

SHORT_BODY_S = 0.05  # how long an unread body is waited for before its connection is given up
# An ASGI extension of the listener: {"send": sends bytes as a part of a body that has begun,
# "send_now": the same at once, or False where it would have to wait}.
CHUNK_EXTENSION = "minisgl.chunk"

CLIENT_GONE = 499  # the status that logs and metrics have for a request that nobody waited for

Headers = list[tuple[bytes, bytes]]
_UNBUFFERED: Headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
EVENT_STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), *_UNBUFFERED]
JSON_LINES_HEADERS = [(b"content-type", b"application/x-ndjson"), *_UNBUFFERED]


class ClientGone(Exception):  # noqa: N818
    """The client closed its connection, or was cut off because it read nothing any more: there is
    nobody to answer.
    """


class Exchange:
    """Wraps an ASGI connection's receive and send, and knows how far both have come."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        request_id: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """`headers`: further ones of the answer, whatever it is."""
        self._receive = receive
        self._send = send
        chunks = scope.get("extensions", {}).get(CHUNK_EXTENSION, {})
        self._send_chunk = chunks.get("send")
        # Sends a part of an event stream without waiting, or returns False where it would have to,
        # and has sent nothing. None: there is no such way.
        self.send_now: Callable[[bytes], bool] | None = chunks.get("send_now")
        self.pump: EventPump  # of the endpoint's server
        self.request_id = request_id
        self.dialect = OPENAI  # of the API that the request is for
        self.request_headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        self.adapter = 0  # the number of the one that the request has; 0: none
        self.api_key: int | None = None  # the number of the client's, where keys are asked for
        self.body_complete = False
        self.response_started = False
        self.status = CLIENT_GONE  # the answer's, once it has begun
        self.work: Work | None = None  # what the request has done, for its line in the log
        self.body_hold: BodyHold | None = None  # until the body's text has been tokenized
        self.gone = False
        # A client that waits for "100 Continue" sends no body until somebody reads it.
        self._body_waits = (b"expect", b"100-continue") in scope["headers"]
        self._headers = [(b"x-request-id", request_id.encode()), *headers]

    async def receive(self) -> Message:
        """The next ASGI message of the client's; notes the body's end and the client's."""
        self._body_waits = False
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
            if self.dialect.id_header is not None:
                headers.append((self.dialect.id_header, self.request_id.encode()))
            if not self.body_complete and not self.gone:
                await self._finish_body(headers)
            message = {**message, "headers": headers}
        await self._send(message)

    async def send_error(self, error: ApiError) -> None:
        """A whole answer with the error's status, and its body as the API writes it."""
        body = self.dialect.body(error, self.request_id)
        await send_json(self.send, body, status=error.status, headers=error.headers)

    def begin(self, work: Work) -> None:
        """The request has been tokenized, and `work` makes what it asks for."""
        self.work = work
        self.release_body()

    def release_body(self) -> None:
        """The body's memory counts no longer. Idempotent."""
        if self.body_hold is not None:
            self.body_hold.release()

    async def send_events(self, events: bytes) -> None:
        """A part of an event stream that start_events() began. Waits while the client is slow: the
        memory of a stream is bounded by the socket's buffers.
        """
        if self._send_chunk is not None:
            await self._send_chunk(events)
        else:
            await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def _finish_body(self, headers: list[tuple[bytes, bytes]]) -> None:
        # A request without a body, or with a small one, has its end in the queue already. Where a
        # body is still coming, the connection can't be used again.
        if not self._body_waits:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._discard(), SHORT_BODY_S)
        if not self.body_complete and not self.gone:
            headers.append((b"connection", b"close"))

    async def _discard(self) -> None:
        while not self.body_complete and not self.gone:
            await self.receive()

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

    def grow(self, count: int) -> None:
        """The request refers to so many bytes more. Raises ApiError 503 where there is no room."""
        self._room.take(count)
        self._count += count

    def release(self) -> None:
        """Idempotent."""
        self._room.used -= self._count
        self._count = 0


async def read_body(
    scope: Scope,
    receive: Receive,
    room: BodyRoom,
    *,
    max_bytes: int,
    timeout: float,
    any_media_type: bool = False,
) -> bytes:
    """The whole body, without a byte order mark. Raises ApiError 408, 413, 415 or 503,
    ClientGone.

    `any_media_type`: what isn't said to be JSON is read, too, unless it is a page's script that
    sends it. A page's script has to say JSON in any case: a browser asks the server whether it may
    send that, and sends the rest unasked, also a body without a type.
    """
    headers = dict(scope["headers"])
    _check_content_type(headers, any_media_type=any_media_type)
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
    body = bytearray()
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            if len(body) + len(part) > max_bytes:
                raise _body_too_large(max_bytes)
            room.take(len(part))
            body += part
            if not message.get("more_body", False):
                return bytes(body).removeprefix(codecs.BOM_UTF8)  # a copy only where there is one
    finally:
        room.used -= len(body)
        body.clear()  # a traceback may keep this frame


def _body_too_large(max_bytes: int) -> ApiError:
    return too_large(f"The request body is too large (limit {max_bytes} bytes).")


def _check_content_type(headers: Mapping[bytes, bytes], *, any_media_type: bool) -> None:
    media_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    by_page = b"origin" in headers
    if media_type != b"application/json" and (by_page or (media_type and not any_media_type)):
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


def json_response(value: Any) -> Response:
    """The same, as Starlette's endpoints return it."""
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return Response(body, media_type="application/json")


async def start_events(send: Send, headers: Headers = EVENT_STREAM_HEADERS) -> None:
    """The head of an event stream."""
    await send({"type": "http.response.start", "status": 200, "headers": headers})


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
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    await task
