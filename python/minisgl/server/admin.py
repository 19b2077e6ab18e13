"""What an operator may do while the server runs: see, add, remove, restart and replace replicas."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from minisgl.config import DAY
from minisgl.engine.api import ReplicaFigures, ReplicaRefused, ReplicaUnknown
from minisgl.engine.change import Change
from minisgl.engine.changes import Changes
from minisgl.ipc.messages import NamedModel
from minisgl.server.body_errors import unknown_field
from minisgl.server.decoding import decode
from minisgl.server.errors import bad_request, replica_refused, replica_unknown
from minisgl.server.http import Exchange, json_response, read_body
from minisgl.server.state import ServerState

MAX_DIGITS = 9  # of a replica's number
MAX_BODY_BYTES = 2**16
DEFAULT_LIMIT = 600.0  # seconds for streams that nobody else can go on with
QUIET_SECONDS = 10.0  # without an event, and a comment says that the connection lives


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model is to be served: as --model and --revision name it. Without `model`, another
    revision of the one that is.
    """

    model: Annotated[str, Meta(max_length=4096)] | None = None
    revision: Annotated[str, Meta(max_length=4096)] | None = None


_wish_decoder = msgspec.json.Decoder(Wish)


class ReplicaPages:
    """The methods are Starlette endpoints. A change is refused at once, or begins and goes on
    whether or not the client stays to hear how: a server-sent event for each of its states.
    """

    def __init__(self, state: ServerState, changes: Changes) -> None:
        self._state = state
        self._changes = changes

    async def replicas(self, request: Request) -> Response:
        """GET /admin/replicas: each of them as it is now. POST: one more."""
        if request.method == "POST":
            return _begun(self._changes.add)
        figures = [_described(one) for one in self._changes.replicas.replicas]
        return json_response({"replicas": figures})

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

    async def replace(self, request: Request) -> Response:
        """POST /admin/replicas/replace?drain=SECONDS: all of them, one after the other, by some
        with the model that the body names. Streams have so long to end where no other replica can
        go on with them.
        """
        drain, state = _drain_of(request, DEFAULT_LIMIT), self._state
        exchange: Exchange = request.scope["minisgl.exchange"]
        body = await read_body(
            request.scope,
            exchange.receive,
            state.bodies,
            max_bytes=min(MAX_BODY_BYTES, state.args.max_body_bytes),
            timeout=state.args.body_timeout,
        )
        wish = decode(_wish_decoder, body, state.ignored_fields, strict=True)
        if wish.model is not None and not wish.model:
            raise bad_request("'model' must not be empty.", param="model")
        served = self._changes.replicas.model.named
        model = wish.model or (served.model if served else state.args.model)
        named = NamedModel(model, wish.revision or None)
        return _begun(lambda: self._changes.replace(named, drain))


def _begun(begin: Callable[[], Change]) -> Response:
    try:
        change = begin()
    except ReplicaUnknown as error:
        raise replica_unknown(str(error)) from None
    except ReplicaRefused as error:
        raise replica_refused(str(error)) from None
    return StreamingResponse(_events(change), media_type="text/event-stream")


async def _events(change: Change) -> AsyncIterator[bytes]:
    """The change's events, and comments where it has nothing to say for long."""
    events = change.events()
    while True:
        event = asyncio.ensure_future(anext(events))
        try:
            while not (await asyncio.wait({event}, timeout=QUIET_SECONDS))[0]:
                yield b": it goes on\n\n"
            yield b"data: " + msgspec.json.encode(event.result()) + b"\n\n"
        except StopAsyncIteration:
            return
        finally:
            event.cancel()


def _number_of(request: Request) -> int:
    text: str = request.path_params["number"]
    if not (text.isascii() and text.isdigit()) or len(text) > MAX_DIGITS:
        raise replica_unknown(f"there is no replica {text[:100]!r}")
    return int(text)


def _drain_of(request: Request, default: float = 0.0) -> float:
    """The one parameter that a change takes. Another one is refused: a change whose `drain` is
    misspelt must not begin without it.
    """
    for name in request.query_params:
        if name != "drain":
            raise unknown_field(name)
    text = request.query_params.get("drain", str(default))
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
