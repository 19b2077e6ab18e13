"""From the items of a conversation to the messages that a model's template knows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from minisgl.server import errors
from minisgl.server.checks import part_text
from minisgl.server.response_schemas import Content, ContentPart, Item, ResponsesRequest
from minisgl.server.schemas import CustomCall, FunctionCall, Message, ToolCall

# A part's type -> its field with the text.
_TEXT_FIELDS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "reasoning_text": "text",
    "summary_text": "text",
    "refusal": "refusal",
}


def input_items(request: ResponsesRequest) -> list[Item]:
    """A request's input as items."""
    if isinstance(request.input, str):
        return [Item(type="message", role="user", content=request.input)]
    return request.input or []


def messages_of(instructions: str | None, items: Sequence[Item], num_earlier: int) -> list[Message]:
    """The messages that instructions and items stand for: a thought, words and calls in a row are
    one message of the assistant's, as the answer was that they came from. ApiError 400.

    The first `num_earlier` items are earlier requests'.
    """
    messages: list[Message] = []
    if instructions is not None:
        messages.append(Message(role="system", content=instructions))
    turn: _AssistantTurn | None = None
    for index, item in enumerate(items):
        # Items of earlier requests have passed these checks.
        place = f"input[{index - num_earlier}]"
        part = _assistant_part(item, place)
        if part is None:
            messages.append(_other_message(item, place))
            turn = None
            continue
        if turn is None or not turn.goes_on(item):
            turn = _AssistantTurn()
            messages.append(turn.message)
        turn.add(item, part)
    return messages


class _AssistantTurn:
    """A message of the assistant's, as its items come."""

    def __init__(self) -> None:
        self.message = Message(role="assistant")
        self._last = ""  # the last item's type

    def goes_on(self, item: Item) -> bool:
        """Whether the item may belong to the same answer as those before it."""
        kind = _kind(item)
        if kind == "reasoning":
            return self._last == "reasoning"
        return kind != "message" or self._last != "message"

    def add(self, item: Item, part: str | ToolCall) -> None:
        """Takes an item: its text, or the call that it is."""
        message = self.message
        self._last = _kind(item)
        if isinstance(part, ToolCall):
            message.tool_calls = [*(message.tool_calls or ()), part]
        elif self._last == "reasoning":
            message.reasoning_content = (message.reasoning_content or "") + part
        else:
            message.content = (message.content or "") + part  # type: ignore[operator]


def _kind(item: Item) -> str:
    return item.type or "message"


def _assistant_part(item: Item, place: str) -> str | ToolCall | None:
    """The text or the call that an item of the assistant's is; None for another's. ApiError 400."""
    kind = _kind(item)
    if kind == "reasoning":
        thought = item.content if item.content else item.summary
        return text_of(thought or "", f"{place}.content")
    if kind == "function_call":
        call = FunctionCall(_needed(item, "name", place), item.arguments)
        return ToolCall(id=_needed(item, "call_id", place), type="function", function=call)
    if kind == "custom_tool_call":
        custom = CustomCall(_needed(item, "name", place), item.input)
        return ToolCall(id=_needed(item, "call_id", place), type="custom", custom=custom)
    if kind == "message" and item.role == "assistant":
        return text_of(item.content or "", f"{place}.content")
    return None


def _other_message(item: Item, place: str) -> Message:
    kind = _kind(item)
    if kind in ("function_call_output", "custom_tool_call_output"):
        output = text_of(_needed(item, "output", place), f"{place}.output")
        return Message(role="tool", tool_call_id=_needed(item, "call_id", place), content=output)
    if kind != "message":
        raise errors.unsupported(
            f"{place}.type",
            f"Items of type '{kind[:64]}' are not supported: those of messages, thoughts "
            "('reasoning') and calls of functions are.",
        )
    role = _needed(item, "role", place)
    return Message(role=role, content=text_of(_needed(item, "content", place), f"{place}.content"))


def _needed(item: Item, name: str, place: str) -> Any:
    value = getattr(item, name)
    if value is None:
        raise errors.missing(f"{place}.{name}")
    return value


def text_of(content: Content, place: str) -> str:
    """The text of an item's content. ApiError 400 for what is no text."""
    if isinstance(content, str):
        return content
    return "\n".join(
        part_text(part, _TEXT_FIELDS, "input_text", f"{place}[{index}]")
        for index, part in enumerate(content)
    )


def stored_items(items: Iterable[Item], response_hex: str) -> list[Item]:
    """Input items as they are kept and shown: with ids, and contents as lists."""
    return [_stored(item, f"{response_hex}_i{number}") for number, item in enumerate(items)]


_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
}


def _stored(item: Item, suffix: str) -> Item:
    kind = _kind(item)
    changes: dict[str, Any] = {"type": kind, "status": item.status or "completed"}
    if item.id is None:
        changes["id"] = f"{_PREFIXES.get(kind, 'item')}_{suffix}"
    if kind == "message" and isinstance(item.content, str):
        own = item.role == "assistant"
        part = ContentPart(type="output_text" if own else "input_text", text=item.content)
        part.annotations = [] if own else None
        changes["content"] = [part]
    return msgspec.structs.replace(item, **changes)
