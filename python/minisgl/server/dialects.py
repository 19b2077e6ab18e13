"""How an API writes errors, and what it calls a request's id. Most speak OpenAI's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minisgl.server.errors import ApiError


@dataclass(frozen=True)
class Dialect:
    """What Guard and Exchange know of an API."""

    body: Callable[[ApiError, str], bytes]  # JSON, of an error and the request's id
    id_header: bytes | None = None  # has the id, too, beside x-request-id


OPENAI = Dialect(lambda error, request_id: error.body())
