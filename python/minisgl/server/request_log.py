"""The line about each request, at --log-level debug: what it was, how long its parts took, why it
ended.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

logger = logging.getLogger("minisgl.requests")


class Work(Protocol):
    """What a request had the engine do."""

    num_prompt_tokens: int

    @property
    def num_generated_tokens(self) -> int:
        """Tokens that were made."""

    @property
    def queued_seconds(self) -> float | None:
        """The longest time that a part of it waited for its first step; None: nothing says so."""

    @property
    def first_token_seconds(self) -> float | None:
        """From the request's arrival to its first token; None where none came."""

    @property
    def finish_reasons(self) -> list[str]:
        """Why its parts ended: each reason once."""


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
    work: Work | None


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
    if (work := answered.work) is not None:
        fields["prompt_tokens"] = work.num_prompt_tokens
        fields["generated_tokens"] = work.num_generated_tokens
        parts.append(_count(work.num_prompt_tokens, "prompt token"))
        for name, text, seconds in (
            ("queued_s", "queued {} s", work.queued_seconds),
            ("first_token_s", "first token after {} s", work.first_token_seconds),
        ):
            if seconds is not None:
                fields[name] = round(seconds, 6)
                parts.append(text.format(f"{seconds:.4f}"))
        parts.append(_count(work.num_generated_tokens, "token"))
        reason = reason or ", ".join(work.finish_reasons)
    fields["end_s"] = round(answered.seconds, 6)
    fields["reason"] = reason or "answered"
    parts.append(f"ended after {answered.seconds:.4f} s: {fields['reason']}")
    logger.debug("request %s: %s", answered.request_id, ", ".join(parts), extra={"fields": fields})


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
