"""Messages as chat templates read them, and a last message that is left open."""

from __future__ import annotations

import json
import secrets
from typing import Any


class CallArguments(dict[str, Any]):
    """The arguments of a call. Some templates read them as an object and others as its JSON text:
    this is an object that becomes the text where a template prints it or adds it to text.
    """

    def __init__(self, arguments: dict[str, Any], text: str) -> None:
        super().__init__(arguments)
        self._text = text

    @classmethod
    def of(cls, given: Any) -> Any:
        """For arguments as an object or as JSON. What is no JSON object stays as it is."""
        if isinstance(given, dict):
            return cls(given, json.dumps(given, ensure_ascii=False))
        if isinstance(given, str):
            try:
                parsed = json.loads(given)
            except (ValueError, RecursionError):
                return given
            if isinstance(parsed, dict):
                return cls(parsed, given)
        return given

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: str) -> str:
        return self._text + other

    def __radd__(self, other: str) -> str:
        return other + self._text


def with_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose calls, if it has any, have CallArguments."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or not calls:
        return message
    return {**message, "tool_calls": [_with_arguments(call) for call in calls]}


def _with_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    arguments = CallArguments.of(function["arguments"])
    return {**call, "function": {**function, "arguments": arguments}}


def without_nulls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with the empty text in the place of a content that is None."""
    return [
        {**message, "content": ""} if message.get("content") is None else message
        for message in messages
    ]


class OpenMessage:
    """The last message of a conversation, to be continued: a mark behind its content shows where
    the prompt is to end. ValueError where it has none.
    """

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        content = messages[-1].get("content") if messages else None
        if not isinstance(content, str):
            raise ValueError("the last message must have a content that can be continued")
        # A template that strips contents takes the mark's last character away.
        self._mark = f"<|continue-{secrets.token_hex(8)}|>"
        self._num_spaces = len(content) - len(content.rstrip())
        self.messages = [*messages[:-1], {**messages[-1], "content": content + self._mark + " "}]

    def cut(self, prompt: str) -> str:
        """The prompt up to the end of the last message's words. ValueError where the template
        leaves them out.
        """
        end = prompt.rfind(self._mark)
        if end < 0:
            raise ValueError("the chat template leaves out the last message, which is to go on")
        head, tail = prompt[:end], prompt[end + len(self._mark) :]
        if tail.startswith(" "):
            return head
        # Words are stripped: the spaces at their end would not be there, either.
        return head[: len(head) - min(self._num_spaces, len(head) - len(head.rstrip()))]
