"""The outermost ASGI layer: what HTTP itself may not do, API keys, and the only place that turns
exceptions into answers.
"""

from __future__ import annotations

import hmac
import time
import uuid
from collections.abc import Mapping
from typing import NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from minisgl.server.errors import ApiError, from_exception, unauthorized
from minisgl.server.http import ClientGone, Exchange, send_error
from minisgl.server.metrics import Metrics
from minisgl.server.request_log import Answered, log_request

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
OTHER = "other"


class Guard:
    """Gives each request an Exchange (scope["minisgl.exchange"]), refuses what is malformed,
    answers every exception, counts the answers.
    """

    def __init__(self, app: ASGIApp, routes: Mapping[object, str], metrics: Metrics) -> None:
        """`routes`: the template of each endpoint's path."""
        self.app = app
        self._routes = routes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, whatever happens meanwhile, and counts it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, uuid.uuid4().hex)
        scope["minisgl.exchange"] = exchange
        began = time.perf_counter()
        reason = ""
        try:
            _check_framing(scope)
            await self.app(scope, exchange.receive, exchange.send)
        except ClientGone:
            reason = "client_gone"
        except Exception as error:
            answer = from_exception(error, exchange.request_id)
            reason = answer.code or answer.type
            # Once a response has begun there is no way to say more: returning cuts the connection,
            # which the client notices.
            if not exchange.response_started:
                await send_error(exchange.send, answer)
        # No path or method of a client's own gets into a label or a line.
        method = scope["method"] if scope["method"] in METHODS else OTHER
        route = self._routes.get(scope.get("endpoint"), OTHER)
        self._metrics.count_answer(route, method, exchange.status)
        seconds = time.perf_counter() - began
        log_request(
            Answered(
                exchange.request_id,
                method,
                route,
                exchange.status,
                seconds,
                reason,
                exchange.generation,
            )
        )


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
    path = path if len(path) <= 200 else path[:200] + "..."
    if error.status_code == 405:
        raise ApiError(
            405,
            f"{method} is not allowed for {path}.",
            code="method_not_allowed",
            headers=error.headers,
        )
    raise ApiError(404, f"Unknown request URL: {method} {path}.", code="unknown_url")


class Protected:
    """An endpoint that needs the API key. It wraps what the router has chosen, so no spelling of a
    path gets around it.
    """

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self.app = app
        self._expected = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on. Raises ApiError 401 without the key."""
        if self._expected is not None and not self._allowed(scope, self._expected):
            raise unauthorized()
        await self.app(scope, receive, send)

    def _allowed(self, scope: Scope, expected: bytes) -> bool:
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, key = value.partition(b" ")
                return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), expected)
        return False
