"""CORS: which pages of other origins a browser lets read this server's answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from starlette.types import Scope

from minisgl.server.http import Headers

ANY = "*"
_METHODS = b"GET, HEAD, POST, OPTIONS"
_MAX_AGE_S = b"7200"  # for which browsers remember a preflight's answer


class Cors:
    """The rule for `origins` (--allowed-origins): none, some, or `*` for all."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._any = ANY in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    def headers(self, scope: Scope) -> Headers:
        """What each answer to the request carries, an error's too."""
        if not self._origins:
            return []
        origin = _header(scope["headers"], b"origin")
        allowed = b"*" if self._any else origin if origin in self._origins else None
        # Caches must not give one origin's answer to another.
        vary = [] if self._any else [(b"vary", b"Origin")]
        if origin is None or allowed is None:
            return vary
        return [
            *vary,
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", b"x-request-id, request-id, retry-after"),
        ]

    def preflight(self, scope: Scope) -> Headers | None:
        """The further headers of the answer to a browser that asks whether a page may send a
        request, which it does without any key. None: the request isn't such a question, or the
        origin isn't allowed.
        """
        if scope["method"] != "OPTIONS" or not self._origins:
            return None
        headers = scope["headers"]
        origin = _header(headers, b"origin")
        asked = _header(headers, b"access-control-request-method")
        if origin is None or asked is None or not (self._any or origin in self._origins):
            return None
        answer = [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-max-age", _MAX_AGE_S),
        ]
        if names := _header(headers, b"access-control-request-headers"):
            answer.append((b"access-control-allow-headers", names))
        if _header(headers, b"access-control-request-private-network") == b"true":
            answer.append((b"access-control-allow-private-network", b"true"))
        return answer


def _header(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    return next((value for name, value in headers if name == wanted), None)
