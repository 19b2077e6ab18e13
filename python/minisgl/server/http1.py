"""HTTP/1.1 on one connection: what h11 reads becomes ASGI messages, and the application's messages
what h11 writes.

At each moment the connection is between two requests, has part of a head, has one request under way
(whose body and answer may be anywhere), or is closed. It leaves each of these states also when the
client is gone: nothing here waits for a client, or for the application, alone.
"""

from __future__ import annotations

import asyncio
import enum
import re
import time
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import unquote
from wsgiref.handlers import format_date_time

import h11
from starlette.types import Scope

from minisgl.server.call import Call
from minisgl.server.errors import ApiError
from minisgl.server.wire import Wire

KEEP_ALIVE_S = 75.0  # longer than the pools of common clients keep a connection
MAX_HEAD = 2**14  # bytes
# Bytes of requests that follow the one under way: the client waits where there are more.
MAX_AHEAD = 2**16
# Events of h11 that are handled at once: one-byte chunks make ten thousand of what one read brings.
EVENTS_PER_TURN = 256

# Empty lines that may stand before a request's line: RFC 9112, 2.2, tells servers to ignore one.
EMPTY_LINES = 8

_EMPTY_LINES = re.compile(rb"(?:\r?\n)+")
_NO_MORE_REQUESTS = (h11.MUST_CLOSE, h11.CLOSED, h11.ERROR)
_ABSOLUTE_FORM = re.compile(rb"(?i)[a-z][a-z0-9+.-]*://([^/?#]*)")
_REFUSALS = {
    500: ("The server had an internal error.", "internal_error"),
    503: ("All connections of the server are at work. Try again later.", "too_many_connections"),
    408: ("The head of the request did not arrive in time.", "timeout"),
    431: (f"The head of the request is too large (limit {MAX_HEAD} bytes).", "request_too_large"),
    501: ("This transfer coding is not supported.", "unsupported_transfer_coding"),
}


class _Parsed(enum.Enum):
    """Why parsing stopped."""

    ALL = "nothing more can be done with what is there"
    MORE = "other connections have their turn"
    BODY_UNREAD = "the application has to read first"


class Http1:
    """The protocol of one connection. An upgrade that is offered is ignored, as the standard
    allows.
    """

    def __init__(self, connection: Wire) -> None:
        self._connection = connection
        self._h11 = _new_h11()
        self._empty_lines = 0  # before the line of the next request
        self._call: Call | None = None  # the request under way
        self._client_gone = False
        self._closed = False
        self._parsing = asyncio.Lock()
        self._freed = asyncio.Event()  # the request under way has ended
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = False  # the timer is that of a head that has begun
        self._become_idle()

    @property
    def idle(self) -> bool:
        """No request is under way."""
        return self._call is None

    async def received(self, data: bytes) -> None:
        """Takes what the client sent. Returns when more may be read."""
        if self._closed or self._client_gone or self._h11.their_state in _NO_MORE_REQUESTS:
            return
        self._h11.receive_data(data)
        await self._advance()
        while not self._closed and self._num_ahead() > MAX_AHEAD:
            if self._call is None:
                await self._advance()
            else:
                self._freed.clear()
                await self._freed.wait()

    def client_gone(self) -> None:
        """The client has closed its connection, or only its own direction: the request under way is
        told so and may answer all the same, and there is no next one.
        """
        self._client_gone = True
        if self._call is None:
            self.close()
        else:
            self._call.disconnect()

    def refuse_connection(self) -> None:
        """Answers before there is a request, and ends the connection."""
        self._refuse(503)
        self.close()

    def close(self) -> None:
        """Ends the connection, as soon as what was written has gone out."""
        if self._closed:
            return
        # A client that is still sending would see a reset, and not the answer, were the connection
        # closed at once.
        linger = not self._client_gone and (
            self._in_head or self._h11.their_state in (h11.SEND_BODY, h11.ERROR)
        )
        self._closed = True
        self._stop_timer()
        call, self._call = self._call, None
        if call is not None:
            call.end()
        self._freed.set()
        self._connection.close(linger=linger)

    def encode(self, event: h11.Event) -> bytes:
        """What goes over the wire for an event of the answer's."""
        return self._h11.send(event) or b""

    def response(self, status: int, headers: list[tuple[bytes, bytes]]) -> h11.Response:
        """An answer's head."""
        return h11.Response(
            status_code=status,
            headers=[*headers, (b"date", format_date_time(time.time()).encode())],
            reason=HTTPStatus(status).phrase.encode(),
        )

    async def continue_body(self) -> None:
        """Tells a client that waits for it that its body is expected."""
        if self._h11.they_are_waiting_for_100_continue and not self._closed:
            head = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            await self._connection.write(self.encode(head))

    def finished(self, call: Call) -> None:
        """The call's answer is complete."""
        if self._call is not call:
            return
        if (
            self._client_gone
            or self._connection.ending
            or self._h11.our_state is not h11.DONE
            or self._h11.their_state is not h11.DONE
        ):
            self.close()
            return
        call.end()
        self._call = None
        self._h11.start_next_cycle()
        self._become_idle()
        if self._has_more():
            self._connection.spawn(self._advance)
        self._freed.set()

    def abandoned(self, call: Call) -> None:
        """The application has ended: an answer that isn't complete stays so, which the client sees
        by the connection's end.
        """
        if self._call is call:
            if not self._client_gone:
                self._refuse(500)
            self.close()

    async def _advance(self) -> None:
        async with self._parsing:
            state = self._parse()
            while state is not _Parsed.ALL:
                if state is _Parsed.BODY_UNREAD and self._call is not None:
                    await self._call.wait_for_room()
                    state = self._parse()
                    continue
                async with self._connection.long_turns:
                    await asyncio.sleep(0)
                    if self._connection.hung_up():  # much may be there still that is nobody's
                        self.client_gone()
                        return
                    state = self._parse()
            if self._call is None and not (self._closed or self._in_head) and self._has_more():
                self._set_timer(self._connection.settings.head_timeout, self._refuse_slow_head)
                self._in_head = True

    def _parse(self) -> _Parsed:
        """Handles what h11 makes of what is there, EVENTS_PER_TURN of its events at most."""
        for _ in range(EVENTS_PER_TURN):
            if self._closed or self._h11.their_state in _NO_MORE_REQUESTS:
                return _Parsed.ALL
            if self._h11.their_state is h11.IDLE and not self._skip_empty_lines():
                return _Parsed.ALL
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                self._refuse(error.error_status_hint)
                self.close()
                return _Parsed.ALL
            if isinstance(event, h11.Request):
                if _head_size(event) > MAX_HEAD:  # h11 looks only where a part is missing
                    self._refuse(431)
                    self.close()
                    return _Parsed.ALL
                self._begin(event)
            elif isinstance(event, h11.Data) and self._call is not None:
                self._call.add_body(event.data)
                if self._call.full:
                    return _Parsed.BODY_UNREAD
            elif isinstance(event, h11.EndOfMessage) and self._call is not None:
                self._call.complete_body()
            else:  # more has to be read, or the request under way has to end
                return _Parsed.ALL
        return _Parsed.MORE

    def _skip_empty_lines(self) -> bool:
        """Between two requests: forgets EMPTY_LINES at most, and leaves further ones to h11, which
        refuses them. False where half of one is all that is there.
        """
        data = self._h11.trailing_data[0]
        if not data.startswith((b"\r", b"\n")):
            return True
        if lines := _EMPTY_LINES.match(data):
            self._empty_lines += lines[0].count(b"\n")
            if self._empty_lines > EMPTY_LINES:
                return True
            if self._in_head:  # what had begun was a line and no head
                self._become_idle()
            data = data[lines.end() :]
            self._h11 = _new_h11()  # it forgets nothing of what it was given
            if data:  # nothing would be the end
                self._h11.receive_data(data)
        return data != b"\r"

    def _has_more(self) -> bool:
        """The next request has begun, or something else is there."""
        return bool(self._h11.trailing_data[0])

    def _num_ahead(self) -> int:
        """Bytes that were received after the request under way."""
        if self._h11.their_state is h11.SEND_BODY:
            return 0
        return len(self._h11.trailing_data[0])

    def _begin(self, request: h11.Request) -> None:
        self._stop_timer()
        self._empty_lines = 0
        target, headers = request.target, list(request.headers)
        if absolute := _ABSOLUTE_FORM.match(target):  # its authority stands above the Host line
            target = target[absolute.end() :]
            target = target if target.startswith(b"/") else b"/" + target
            headers = [(name, value) for name, value in headers if name != b"host"]
            headers.append((b"host", absolute[1]))
        path, _, query = target.partition(b"?")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.http_version.decode(),
            "method": request.method.decode().upper(),
            "scheme": self._connection.scheme,
            "path": unquote(path.decode()),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": self._connection.client,
            "server": self._connection.server,
        }
        self._call = Call(self, self._connection, scope)
        self._connection.at_work()
        if self._client_gone:
            self._call.disconnect()
        self._connection.spawn(self._call.run)

    def _refuse(self, status: int) -> None:
        """Answers what has no answer yet, without the application."""
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        sentence, code = _REFUSALS.get(status, ("The request is not valid HTTP/1.1.", "bad_http"))
        body = ApiError(status, sentence, code=code).body()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        if status == 503:
            headers.append((b"retry-after", b"1"))
        head = self.response(status, headers)
        self._connection.write_soon(
            self.encode(head) + self.encode(h11.Data(data=body)) + self.encode(h11.EndOfMessage())
        )

    def _refuse_slow_head(self) -> None:
        self._refuse(408)
        self.close()

    def _become_idle(self) -> None:
        self._set_timer(KEEP_ALIVE_S, self.close)

    def _set_timer(self, seconds: float, action: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, action)

    def _stop_timer(self) -> None:
        self._in_head = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _head_size(request: h11.Request) -> int:
    """Bytes of the request's line and its fields, without the spaces that may stand there."""
    fields = sum(len(name) + len(value) + len(b": \r\n") for name, value in request.headers)
    return len(request.method) + len(request.target) + len(b"  HTTP/1.1\r\n") + fields


def _new_h11() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
