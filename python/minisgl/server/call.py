"""One request and its answer as ASGI messages: a run of the application."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

import h11
from starlette.types import Message, Scope

from minisgl.server.http import CHUNK_EXTENSION
from minisgl.server.wire import Wire

# Bytes of a body that the application hasn't taken yet: the client waits where there are more.
MAX_UNREAD = 2**16

logger = logging.getLogger("minisgl.http")


class AnswerProtocol(Protocol):
    """The protocol that an answer goes through."""

    async def continue_body(self) -> None:
        """Tells a client that waits for it that its body is expected."""
        ...

    def response(self, status: int, headers: list[tuple[bytes, bytes]]) -> h11.Response:
        """An answer's head."""
        ...

    def encode(self, event: h11.Event) -> bytes:
        """What goes over the wire for an event of the answer's."""
        ...

    def finished(self, call: Call) -> None:
        """The call's answer is complete."""
        ...

    def abandoned(self, call: Call) -> None:
        """The application has ended."""
        ...


class Call:
    """A request and its answer: one run of the application."""

    def __init__(self, http: AnswerProtocol, connection: Wire, scope: Scope) -> None:
        self._http = http
        self._connection = connection
        self._scope = scope
        chunks = {"send": self._send_chunk, "send_now": self._send_now}
        scope["extensions"] = {CHUNK_EXTENSION: chunks}
        self._has_no_body = scope["method"] == "HEAD"  # the answer
        self._chunked = False  # the answer's body goes out in chunks
        self._unsent = b""  # the answer's head, which goes out with what follows
        self._started = False
        self._ended = False  # nothing is sent any more
        self._gone = False  # the client is
        self._body = bytearray()  # what the application hasn't taken yet
        self._complete = False  # all of the body is there
        self._told_complete = False  # and the application knows
        self._news = asyncio.Event()  # for the application
        self._room = asyncio.Event()  # for the next part of the body

    async def run(self) -> None:
        """The application, whose failures end here."""
        try:
            await self._connection.settings.app(self._scope, self._receive, self._send)
        except Exception:
            logger.exception("the application failed")
        self._http.abandoned(self)

    @property
    def full(self) -> bool:
        """The application has enough to read."""
        return len(self._body) >= MAX_UNREAD

    def add_body(self, data: bytes) -> None:
        """A part of the body."""
        if not self._gone:
            self._body += data
            self._news.set()

    async def wait_for_room(self) -> None:
        """Waits until there is room for more of the body, or nobody takes it any more."""
        while self.full:
            self._room.clear()
            await self._room.wait()

    def complete_body(self) -> None:
        """The body has had its last part."""
        self._complete = True
        self._news.set()

    def disconnect(self) -> None:
        """The client is gone: what it sent is nobody's, what it is sent may arrive or not."""
        self._gone = True
        self._body.clear()
        self._news.set()
        self._room.set()

    def end(self) -> None:
        """The answer is complete, or the connection has ended."""
        self._ended = True
        self.disconnect()

    async def _receive(self) -> Message:
        await self._http.continue_body()
        while not self._gone:
            if self._body or (self._complete and not self._told_complete):
                body = bytes(self._body)
                self._body.clear()
                self._told_complete = self._complete
                self._room.set()
                return {"type": "http.request", "body": body, "more_body": not self._complete}
            self._news.clear()
            await self._news.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._ended:
            return
        if message["type"] == "http.response.start":
            assert not self._started, "the answer has begun already"
            self._started = True
            status, headers = message["status"], list(message.get("headers", ()))
            self._has_no_body = self._has_no_body or status in (204, 304)
            head = self._http.response(status, headers)
            self._unsent = self._http.encode(head)
            self._chunked = b"\r\ntransfer-encoding: chunked\r\n" in self._unsent.lower()
            return
        data, self._unsent = self._unsent, b""
        if (body := message.get("body", b"")) and not self._has_no_body:
            data += self._http.encode(h11.Data(data=body))
        last = not message.get("more_body", False)
        if last:
            data += self._http.encode(h11.EndOfMessage())
        if data:
            await self._connection.write(data)
        if last:
            self._http.finished(self)

    async def _send_chunk(self, data: bytes) -> None:
        """Sends a part of the body, which isn't empty and not the last, as its message would be:
        h11's state stays as it is while a body is being sent, and a chunk's frame is its length.
        """
        if self._chunked and not self._unsent and not self._ended:
            await self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def _send_now(self, data: bytes) -> bool:
        """The same if it needs no waiting, and False, with nothing sent, if it does."""
        if self._unsent or self._ended or not self._chunked:
            return False
        return self._connection.write_now(b"%x\r\n%b\r\n" % (len(data), data))
