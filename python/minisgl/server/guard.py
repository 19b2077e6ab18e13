"""The outermost ASGI layer: what HTTP itself may not do, API keys, and the only place that turns
exceptions into answers.
"""

from __future__ import annotations

import hmac
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from minisgl.server.cors import Cors
from minisgl.server.dialects import OPENAI, Dialect
from minisgl.server.errors import BACKLOG_CODES, ApiError, from_exception, unauthorized
from minisgl.server.hosts import Hosts
from minisgl.server.http import ClientGone, Exchange
from minisgl.server.request_log import Answered, log_request
from minisgl.server.state import ServerState

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
OTHER = "other"
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")


class Guard:
    """Gives each request an Exchange (scope["minisgl.exchange"]), refuses what is malformed,
    answers every exception, counts the answers.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Mapping[object, str],
        dialects: Mapping[str, Dialect],
        state: ServerState,
    ) -> None:
        """`routes`: the template of each endpoint's path. `dialects`: those of paths where errors
        aren't OpenAI's, there and below.
        """
        self.app = app
        self._routes = routes
        self._dialects = dialects
        self._state = state
        self._cors = Cors(state.args.allowed_origins)
        self._hosts = Hosts(state.args)
        self._root = state.args.root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, whatever happens meanwhile, and counts it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = self._cors.headers(scope)
        exchange = Exchange(scope, receive, send, _request_id(scope), headers)
        scope["minisgl.exchange"] = exchange
        began = time.perf_counter()
        reason = ""
        try:
            scope["path"] = path = _plain_path(scope["path"], self._root)
            exchange.dialect = self._dialect(path)
            _check_framing(scope)
            self._hosts.check(scope)
            if (preflight := self._cors.preflight(scope)) is not None:
                await _send_empty(exchange.send, preflight)
            else:
                await self.app(scope, exchange.receive, exchange.send)
        except ClientGone:
            reason = "client_gone"
        except Exception as error:
            answer = from_exception(error, exchange.request_id)
            reason = answer.code or answer.type
            route = self._routes.get(scope.get("endpoint"), OTHER)
            self._state.board.refuse(route, answer.status, reason, answer.message)
            if reason in BACKLOG_CODES:
                answer.headers["Retry-After"] = str(self._state.client.retry_after)
            # Once a response has begun there is no way to say more: returning cuts the connection,
            # which the client notices.
            if not exchange.response_started:
                await exchange.send_error(answer)
        self._note(scope, exchange, time.perf_counter() - began, reason)

    def _dialect(self, path: str) -> Dialect:
        for folder, dialect in self._dialects.items():
            if path.startswith(folder) and path[len(folder) :][:1] in ("", "/"):
                return dialect
        return OPENAI

    def _note(self, scope: Scope, exchange: Exchange, seconds: float, reason: str) -> None:
        # No path or method of a client's own gets into a label or a line.
        method = scope["method"] if scope["method"] in METHODS else OTHER
        route = self._routes.get(scope.get("endpoint"), OTHER)
        status, key = exchange.status, scope.get("minisgl.key")
        self._state.metrics.http.count(route, method, status, seconds=seconds, api_key=key)
        log_request(
            Answered(
                exchange.request_id,
                method,
                route,
                status,
                seconds,
                reason,
                key,
                exchange.work,
            )
        )


def _request_id(scope: Scope) -> str:
    """The client's own where it is a short word of printable characters, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex


def _plain_path(path: str, root: str) -> str:
    """The path without the prefix that a proxy may leave there (--root-path), and without a slash
    at its end.
    """
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :] or "/"
    return path[:-1] if len(path) > 1 and path.endswith("/") else path


async def _send_empty(send: Send, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _check_framing(scope: Scope) -> None:
    if scope["http_version"] not in ("1.0", "1.1"):
        raise ApiError(
            505,
            "This HTTP version is not supported. The server speaks HTTP/1.0 and HTTP/1.1.",
            code="http_version_not_supported",
            headers={"Connection": "close"},
        )
    names = [name for name, _ in scope["headers"]]
    if b"transfer-encoding" in names and b"content-length" in names:
        # Two answers to the question where the body ends: request smuggling lives on that.
        raise ApiError(
            400,
            "A request must not have both Content-Length and Transfer-Encoding.",
            headers={"Connection": "close"},
        )


async def routing_error(request: Request, error: Exception) -> NoReturn:
    """Handler of the router's exceptions: a 404 or 405 in the shape of all other errors."""
    assert isinstance(error, HTTPException)
    scope = request.scope
    method, path = scope["method"], scope["path"]
    meant = _meant(path, {route.path for route in request.app.routes})
    path = path if len(path) <= 200 else path[:200] + "..."
    if error.status_code == 405:
        raise ApiError(
            405,
            f"{method} is not allowed for {path}.",
            code="method_not_allowed",
            headers=error.headers,
        )
    advice = f" There is {meant}: does the client's base URL end as it needs it?" if meant else ""
    raise ApiError(404, f"Unknown request URL: {method} {path}.{advice}", code="unknown_url")


def _meant(path: str, known: Set[str]) -> str | None:
    """A known path with "/v1" before the one that was asked for, or without: some clients add it to
    their base URL, and others need it there.
    """
    return next((one for one in (f"/v1{path}", path.removeprefix("/v1")) if one in known), None)


class Protected:
    """An endpoint that needs one of the API keys, where there are any. It wraps what the router has
    chosen, so no spelling of a path gets around it. An operator's keys are nobody's number.
    """

    def __init__(
        self,
        app: ASGIApp,
        api_keys: Sequence[str],
        *,
        numbered: bool = True,
        header: bytes | None = None,
    ) -> None:
        """`header`: one that may have the key, too, beside Authorization."""
        self.app = app
        self._header = header
        self._numbered = numbered
        self._keys = [key.encode() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, with the key's number in scope["minisgl.key"]. Raises ApiError 401
        without a key.
        """
        if self._keys:
            number = self._number_of(scope)
            if number is None:
                raise unauthorized(self._header)
            if self._numbered:
                scope["minisgl.key"] = number
        await self.app(scope, receive, send)

    def _number_of(self, scope: Scope) -> int | None:
        numbers = [self._number(key) for key in self._given_keys(scope["headers"])]
        return next((number for number in numbers if number is not None), None)

    def _given_keys(self, headers: Sequence[tuple[bytes, bytes]]) -> Iterator[bytes]:
        """What stands as a key in the first header of each name."""
        given = dict(reversed(headers))
        scheme, _, key = given.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            yield key.strip()
        if self._header is not None and self._header in given:
            yield given[self._header].strip()

    def _number(self, key: bytes) -> int | None:
        # Each is compared, so that the time tells nothing.
        same = [hmac.compare_digest(key, expected) for expected in self._keys]
        return same.index(True) if True in same else None
