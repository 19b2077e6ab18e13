"""The line about each request, at --log-level debug: what it was, how long its parts took, why it
ended.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minisgl.server.generation import Generation

logger = logging.getLogger("minisgl.requests")


@dataclass(frozen=True)
class Answered:
    """A request whose answer is over."""

    request_id: str  # as in x-request-id
    method: str
    route: str  # the path's template
    status: int
    seconds: float  # from its head's arrival to the end
    reason: str  # why there was no full answer; "" where there was one
    api_key: int | None  # its number, from 0; None where none was asked for, or a wrong one sent
    generation: Generation | None


def log_request(answered: Answered) -> None:
    """Writes the line, if anybody is to see it."""
    if not logger.isEnabledFor(logging.DEBUG):
        return
    fields: dict[str, object] = {
        "request_id": answered.request_id,
        "method": answered.method,
        "route": answered.route,
        "status": answered.status,
    }
    if answered.api_key is not None:
        fields["api_key"] = answered.api_key
    parts = [f"{answered.method} {answered.route} {answered.status}"]
    reason = answered.reason
    if (generation := answered.generation) is not None:
        fields["prompt_tokens"] = generation.num_prompt_tokens
        fields["generated_tokens"] = generation.num_generated_tokens
        parts.append(_count(generation.num_prompt_tokens, "prompt token"))
        for name, text, seconds in (
            ("queued_s", "queued {} s", generation.queued_seconds),
            ("first_token_s", "first token after {} s", generation.first_token_seconds),
        ):
            if seconds is not None:
                fields[name] = round(seconds, 6)
                parts.append(text.format(f"{seconds:.4f}"))
        parts.append(_count(generation.num_generated_tokens, "token"))
        reason = reason or ", ".join(generation.finish_reasons)
    fields["end_s"] = round(answered.seconds, 6)
    fields["reason"] = reason or "answered"
    parts.append(f"ended after {answered.seconds:.4f} s: {fields['reason']}")
    logger.debug("request %s: %s", answered.request_id, ", ".join(parts), extra={"fields": fields})


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
