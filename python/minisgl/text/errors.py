"""Why a text was not turned into tokens, or tokens into text, though nothing is wrong with it."""

from __future__ import annotations


class WorkerLost(Exception):  # noqa: N818
    """The process died before it answered, or isn't there now (HTTP 503)."""


class TextQueueFull(Exception):  # noqa: N818
    """Others' texts would be in front of this one for too long (HTTP 429)."""
