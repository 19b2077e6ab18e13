"""Why a text was not turned into tokens, or tokens into text, though it is Unicode."""

from __future__ import annotations


class WorkerLost(Exception):  # noqa: N818
    """The process died before it answered, or isn't there now (HTTP 503)."""


class TextQueueFull(Exception):  # noqa: N818
    """Others' texts would be in front of this one for too long (HTTP 429)."""


class PromptTooLong(Exception):  # noqa: N818
    """A prompt that can't fit, seen before it is tokenized (HTTP 400)."""

    def __init__(self, at_least: int, max_tokens: int) -> None:
        super().__init__(f"the prompt has at least {at_least} tokens (limit {max_tokens})")
        self.at_least = at_least
        self.max_tokens = max_tokens
