"""What an operator may do while the server runs: see, add, remove and restart replicas."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from minisgl.config import DAY
from minisgl.engine.api import ReplicaFigures, ReplicaRefused, ReplicaUnknown
from minisgl.engine.changes import Change, Changes
from minisgl.server.errors import bad_request, replica_refused, replica_unknown

MAX_DIGITS = 9  # of a replica's number


class ReplicaPages:
    """The methods are Starlette endpoints. A change is refused at once, or begins and goes on
    whether or not the client stays to hear how: a server-sent event for each of its states.
    """

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    async def replicas(self, request: Request) -> Response:
        """GET /admin/replicas: each of them as it is now. POST: one more."""
        if request.method == "POST":
            return _begun(self._changes.add)
        figures = [_described(one) for one in self._changes.replicas.replicas]
        return Response(msgspec.json.encode({"replicas": figures}), media_type="application/json")

    async def replica(self, request: Request) -> Response:
        """DELETE /admin/replicas/{number}?drain=SECONDS: one less. Its streams have so long to end
        there; without `drain` they go on elsewhere at once.
        """
        number, drain = _number_of(request), _drain_of(request)
        return _begun(lambda: self._changes.remove(number, drain))

    async def restart(self, request: Request) -> Response:
        """POST /admin/replicas/{number}/restart?drain=SECONDS: its process is replaced."""
        number, drain = _number_of(request), _drain_of(request)
        return _begun(lambda: self._changes.restart(number, drain))


def _begun(begin: Callable[[], Change]) -> Response:
    try:
        change = begin()
    except ReplicaUnknown as error:
        raise replica_unknown(str(error)) from None
    except ReplicaRefused as error:
        raise replica_refused(str(error)) from None
    return StreamingResponse(_events(change), media_type="text/event-stream")


async def _events(change: Change) -> AsyncIterator[bytes]:
    async for event in change.events():
        yield b"data: " + msgspec.json.encode(event) + b"\n\n"


def _number_of(request: Request) -> int:
    text: str = request.path_params["number"]
    if not (text.isascii() and text.isdigit()) or len(text) > MAX_DIGITS:
        raise replica_unknown(f"there is no replica {text[:100]!r}")
    return int(text)


def _drain_of(request: Request) -> float:
    text = request.query_params.get("drain", "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= DAY:
        raise bad_request(
            f"'drain' must be seconds between 0 and {DAY:.0f}, got {text[:100]!r}.", param="drain"
        )
    return seconds


def _described(one: ReplicaFigures) -> dict[str, Any]:
    described: dict[str, Any] = msgspec.to_builtins(one)
    return described
