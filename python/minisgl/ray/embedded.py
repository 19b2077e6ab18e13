"""A server without a socket: its application and its engine, on an event loop of somebody else."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.types import ASGIApp

from minisgl.config import ServerArgs
from minisgl.config.http import ANY_HOST
from minisgl.engine.client import EngineClient
from minisgl.engine.local_ranks import RANK_COMMAND
from minisgl.engine.replicas import Replicas
from minisgl.engines import make_engines, open_kv_events
from minisgl.model_files.source import resolve_model
from minisgl.server.app import create_app
from minisgl.server.state import ServerState
from minisgl.serving import start_text
from minisgl.tasks import background
from minisgl.text.formats import check_names

PIECES_AHEAD = 16  # of an answer, where its reader is slower


class EmbeddedServer:
    """Made by start(), ended by close()."""

    def __init__(
        self,
        state: ServerState,
        engine: EngineClient | Replicas,
        opened: contextlib.ExitStack,
    ) -> None:
        self.app: ASGIApp = create_app(state)
        self._state = state
        self._engine = engine
        self._opened = opened  # what is closed at the end

    @classmethod
    async def start(cls, args: ServerArgs) -> EmbeddedServer:
        """Loads the model and starts its ranks on this host. Raises ModelError, EngineStartError
        and KvEventsError.
        """
        check_names(args.tool_call_parser, args.reasoning_parser)
        # It listens nowhere itself: by which names it is reached is its proxy's business.
        args = replace(args, allowed_hosts=args.allowed_hosts or (ANY_HOST,))
        files = await asyncio.to_thread(
            resolve_model,
            args.model,
            revision=args.revision,
            weights=args.load_format != "dummy",
            show_progress=False,
        )
        with contextlib.ExitStack() as stack:
            kv_events = stack.enter_context(open_kv_events(args))
            engine = make_engines(args, files, None, RANK_COMMAND, None, kv_events)
            state = ServerState(args, engine, args.served_model_name or (files.name,))
            embedded = cls(state, engine, stack.pop_all())
        try:
            await asyncio.gather(engine.start(args.startup_timeout), start_text(state, files.path))
        except BaseException:
            await embedded.close()
            raise
        return embedded

    def check_health(self) -> None:
        """RuntimeError with the reason once the engine has failed for good. One that is busy, or is
        being started again, is well.
        """
        if self._engine.state == "failed":
            raise RuntimeError(f"the engine failed for good: {self._engine.failure}")

    async def close(self) -> None:
        """Ends all that was started."""
        if self._state.text is not None:
            await self._state.text.close()
        await self._engine.close()
        self._opened.close()


@dataclass
class Answer:
    """What an application says to one request."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    pieces: asyncio.Queue[bytes | None] = field(
        default_factory=lambda: asyncio.Queue(PIECES_AHEAD)
    )  # of the body; None: there are no more

    @property
    def is_stream(self) -> bool:
        """Whether the body is server-sent events."""
        return self.headers.get(b"content-type", b"").startswith(b"text/event-stream")

    async def texts(self) -> AsyncIterator[str]:
        """The body, as it comes. A character is never cut."""
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        while (piece := await self.pieces.get()) is not None:
            if text := decode(piece):
                yield text


@contextlib.asynccontextmanager
async def post(
    app: ASGIApp, path: str, body: bytes, headers: Mapping[str, str]
) -> AsyncIterator[Answer]:
    """A request to an application of this process, from its head to the end of the block: whoever
    leaves that early is a client that has gone.
    """
    answer, begun = Answer(), asyncio.Event()
    gone = asyncio.Event()
    requests = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if requests:
            return requests.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.lower(): value for name, value in message.get("headers", ())}
            begun.set()
        elif message["type"] == "http.response.body":
            if piece := message.get("body"):
                await answer.pieces.put(piece)
            if not message.get("more_body"):
                await answer.pieces.put(None)

    async def run() -> None:
        try:
            await app(_scope(path, body, headers), receive, send)
        finally:
            begun.set()
            answer.status = answer.status or 500
            with contextlib.suppress(asyncio.QueueFull):  # whoever reads finds the end there
                answer.pieces.put_nowait(None)

    task = background(run(), f"a request to {path}")
    try:
        await begun.wait()
        yield answer
    finally:
        gone.set()
        task.cancel()
        await asyncio.wait({task})


def _scope(path: str, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    own = {"content-type": "application/json", "content-length": str(len(body))}
    given = {name.lower(): value for name, value in headers.items()}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in {**given, **own}.items()],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
    }
