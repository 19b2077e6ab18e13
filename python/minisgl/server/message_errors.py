"""Errors as Anthropic's API writes them, and where its clients put their key."""

from __future__ import annotations

from typing import Any

import msgspec

from minisgl.server.dialects import Dialect
from minisgl.server.errors import ApiError

KEY_HEADER = b"x-api-key"  # in which Anthropic's clients send their key

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(error: ApiError, request_id: str) -> bytes:
    """{"type": "error", "error": {"type", "message"}, "request_id"}"""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    if error.type == "server_error":  # what has failed, and not what is busy
        kind = "api_error"
    about: dict[str, Any] = {"type": kind, "message": _sentence(error)}
    if error.param == "thread":  # the SDK's runner of tools then sends all messages
        about["details"] = {"error_code": "thread_unsupported_request"}
    return msgspec.json.encode({"type": "error", "error": about, "request_id": request_id})


def _sentence(error: ApiError) -> str:
    if error.prompt_tokens is None:
        return error.message
    # Claude Code makes room in a conversation when it reads these words.
    number, limit = error.prompt_tokens
    return f"prompt is too long: {number} tokens > {limit} maximum. {error.message}"


def error_event(error: ApiError, request_id: str) -> bytes:
    """The same as the last event of a stream."""
    return b"event: error\ndata: " + error_body(error, request_id) + b"\n\n"


ANTHROPIC = Dialect(error_body, id_header=b"request-id")
