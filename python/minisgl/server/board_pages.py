"""GET /ui/board: the board's numbers as server-sent events, as long as somebody looks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from minisgl.engine.api import ReplicaFigures, rank_figures
from minisgl.server.board import Refusal
from minisgl.server.errors import ApiError
from minisgl.server.http import EVENT_STREAM_HEADERS
from minisgl.server.state import ServerState

MOST_FOLLOWERS = 64  # at a time: they all hear at once, while answers wait for their turn
_HEADERS = {name.decode(): value.decode() for name, value in EVENT_STREAM_HEADERS}


class BoardPages:
    """The methods are Starlette endpoints."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self.num_followers = 0

    async def events(self, request: Request) -> Response:
        """First "history" and "state"; then a "sample" every two seconds, and "state" again where
        it has changed. ApiError 503 where MOST_FOLLOWERS are heard already.
        """
        if request.method == "HEAD":
            return Response(headers=_HEADERS)
        return _Followed(self, self._events())

    async def _events(self) -> AsyncIterator[bytes]:
        board = self._state.board
        yield _event(b"history", board.history())
        shown = msgspec.json.encode(self._described())
        yield _event(b"state", shown)
        async for sample in board.following():
            events = _event(b"sample", msgspec.json.encode(sample))
            now = msgspec.json.encode(self._described())
            if now != shown:
                shown = now
                events += _event(b"state", shown)
            yield events

    def _described(self) -> dict[str, Any]:
        """The server as it is now."""
        state, client, info = self._state, self._state.client, self._state.info()
        stats = client.stats
        tiers = {
            "device": (stats.pages_cached, stats.prefix_queries, stats.prefix_hits),
            "host": (stats.host_pages_cached, stats.host_queries, stats.host_hits),
        }
        return {
            "model": state.model_name,
            "state": client.state,
            "phase": client.phase,
            "failure": client.failure,
            "restarts": client.num_restarts,
            "live": client.num_live,
            "replaying": client.num_replaying,
            "waiting_tokens": client.waiting_tokens,
            "pages_total": stats.pages_total,
            "pages_free": stats.pages_free,
            "page_size": info.page_size if info else 0,
            "tiers": {
                name: {"pages": pages, "looked_for": looked_for, "found": found}
                for name, (pages, looked_for, found) in tiers.items()
            },
            "ranks": rank_figures(client.rank_infos),
            "replicas": [*map(_replica, client.replicas)],
            "refusals": [*map(self._refusal, reversed(state.board.refusals))],
            "operators": state.operators,
        }

    def _refusal(self, refusal: Refusal) -> dict[str, Any]:
        shown: dict[str, Any] = refusal._asdict()
        if len(self._state.args.api_key) > 1:  # what one client has sent is nothing for another
            shown["message"] = ""
        return shown


class _Followed(StreamingResponse):
    """One follower's events, who counts until they end."""

    def __init__(self, pages: BoardPages, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, headers=_HEADERS)
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._pages.num_followers >= MOST_FOLLOWERS:
            raise ApiError(
                503,
                "Too many follow the board. Try again later.",
                type="service_unavailable",
                code="board_full",
            )
        self._pages.num_followers += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._pages.num_followers -= 1


def _replica(one: ReplicaFigures) -> dict[str, Any]:
    stats = one.stats
    return {
        "number": one.number,
        "state": one.state,
        "phase": one.phase,
        "place": one.place,
        "model": one.model,
        "revision": one.revision,
        "live": one.num_live,
        "waiting_tokens": one.waiting_tokens,
        "restarts": one.num_restarts,
        "kv_usage": stats.kv_cache_usage if one.num_live else 0.0,
        "looked_for": stats.prefix_queries,
        "found": stats.prefix_hits + stats.host_hits,
        "ranks": one.ranks,
    }


def _event(name: bytes, data: bytes) -> bytes:
    return b"event: " + name + b"\ndata: " + data + b"\n\n"
