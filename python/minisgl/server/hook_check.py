"""A proof at start that Hypercorn's connections are this server's: two requests to a server of its
own.

Connection takes the place of a class that Hypercorn looks up by name. Without it nothing would
fail: slow heads, closed connections and clients that read nothing would merely be treated worse.
"""

from __future__ import annotations

import asyncio
import contextlib
from importlib.metadata import version

from starlette.types import Receive, Scope, Send

from minisgl.server.addresses import Listener, ListenError
from minisgl.server.http import CHUNK_EXTENSION
from minisgl.server.listener import serve_http

CHECK_SECONDS = 10.0

_HEAD = b"GET / HTTP/1.1\r\nHost: check\r\nConnection: close\r\n"
_HALF_HEAD = b"GET / HTTP/1.1\r\n"


async def check_hooks() -> None:
    """Raises ListenError, with one sentence, unless a chunk that the application sends by the short
    way arrives, and half a head is answered with 408.
    """
    answers = []
    for request, head_timeout in ((_HEAD + b"\r\n", CHECK_SECONDS), (_HALF_HEAD, 0.0)):
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            answers.append(await asyncio.wait_for(_ask(request, head_timeout), CHECK_SECONDS))
    if len(answers) < 2 or b"short way" not in answers[0] or b" 408" not in answers[1]:
        raise ListenError(
            f"Hypercorn {version('hypercorn')} doesn't run this server's HTTP protocol (answers "
            f"{answers!r:.200}): install the version that minisgl needs with "
            "pip install 'hypercorn>=0.18,<0.19'"
        )


async def _ask(request: bytes, head_timeout: float) -> bytes:
    """The whole answer to a request over a connection of its own."""
    listener = Listener.bind("127.0.0.1", 0)
    listener.listen()
    port = listener.port
    done = asyncio.Event()
    server = asyncio.create_task(
        serve_http(_answer, listener, done.wait, head_timeout=head_timeout)
    )
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            return await reader.read()
        finally:
            writer.close()
    finally:
        done.set()
        await asyncio.gather(server, return_exceptions=True)


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if extension := scope["extensions"].get(CHUNK_EXTENSION):
        await extension["send"](b"by the short way")
    await send({"type": "http.response.body", "body": b"", "more_body": False})
