"""A client of many server-sent event streams that costs little while it measures: it keeps what
arrives with the time of arrival, and reads it afterwards.
"""

from __future__ import annotations

import asyncio
import gc
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import msgspec
import uvloop


class StreamError(Exception):
    """A stream didn't come to its proper end; the message says how."""


class Event(NamedTuple):
    arrived: float  # time.monotonic()
    data: bytes  # what stands behind "data: ", JSON


class Received(asyncio.Protocol):
    """One request over a connection of its own, and all that came back."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.sent = 0.0  # time.monotonic()
        self.reads: list[tuple[float, bytes]] = []
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.sent = time.monotonic()
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self.reads.append((time.monotonic(), data))

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set()

    def events(self) -> list[Event]:
        """All events but the closing [DONE]. Raises StreamError unless it is there, behind a 200
        and before a proper end of the body.
        """
        found: list[Event] = []
        rest = b""
        for arrived, chunk in self._chunks():
            *whole, rest = (rest + chunk).split(b"\n\n")
            found += [Event(arrived, event.removeprefix(b"data: ")) for event in whole]
        if not found or found[-1].data != b"[DONE]":
            raise StreamError(
                f"no [DONE] at the end: {(found[-1].data if found else rest)[:200]!r}"
            )
        return found[:-1]

    def _chunks(self) -> Iterator[tuple[float, bytes]]:
        """The chunks of the body, each with the arrival of its last byte."""
        data = b"".join(read for _, read in self.reads)
        ends = list(accumulate(len(read) for _, read in self.reads))
        head, _, _ = data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise StreamError(data[:300].decode(errors="replace") or "no answer")
        start = len(head) + 4
        while (line_end := data.find(b"\r\n", start)) >= 0:
            size = int(data[start:line_end], 16)
            start = line_end + 2 + size + 2
            if start > len(data):
                break
            if not size:
                return
            yield self.reads[bisect_left(ends, start)][0], data[start - 2 - size : start - 2]
        raise StreamError("the connection was closed in the middle of the answer")


def post(url: str, path: str, body: object, *, key: str = "") -> bytes:
    """The bytes of a POST request, with an API key if there is one."""
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    content = msgspec.json.encode(body)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nConnection: close\r\n"
        f"{authorization}Content-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def run_streams(url: str, requests: Sequence[bytes], concurrency: int) -> list[Received]:
    """Sends all requests, `concurrency` at a time, and returns when all have ended."""

    async def run() -> list[Received]:
        loop = asyncio.get_running_loop()
        parts = urlsplit(url)
        pending = iter([Received(request) for request in requests])
        received: list[Received] = []

        async def client() -> None:
            for stream in pending:
                received.append(stream)
                await loop.create_connection(lambda: stream, parts.hostname, parts.port)  # noqa: B023
                await stream.ended.wait()

        await asyncio.gather(*(client() for _ in range(concurrency)))
        return received

    gc.collect()
    gc.disable()  # what is kept here has no cycles, and there is a lot of it
    try:
        return uvloop.run(run())
    finally:
        gc.enable()
