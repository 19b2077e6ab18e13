"""From the turns of a conversation, in blocks, to the messages that a model's template knows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from minisgl.server import errors
from minisgl.server.checks import part_text
from minisgl.server.message_schemas import Block, TextBlock, Turn
from minisgl.server.schemas import FunctionCall, Message, ToolCall

_TEXT = {"text": "text"}
# Claude Code's first block says which request this is: with it no two prompts would begin alike.
_BILLING = "x-anthropic-billing-header:"


def messages_of(system: str | Sequence[TextBlock] | None, turns: Sequence[Turn]) -> list[Message]:
    """The messages that a system prompt and turns stand for. ApiError 400 for what is no text.

    What a tool gave is a message of its own, before the user's words beside it. Turns of one role
    in a row are one message, as templates let user and assistant alternate. Nor do they all know
    system messages behind the first one: those are a reminder in the message before them.
    """
    messages: list[Message] = []
    if system is not None:
        if not isinstance(system, str):
            system = [block for block in system if not (block.text or "").startswith(_BILLING)]
        if text := text_of(system, "system"):
            messages.append(Message(role="system", content=text))
    for index, turn in enumerate(turns):
        place = f"messages[{index}].content"
        blocks = _blocks(turn)
        if not blocks:
            raise errors.bad_request(f"'{place}' has no block.", param=place)
        if turn.role == "assistant":
            _add_assistant(messages, blocks, place)
        elif turn.role == "user":
            _add_user(messages, blocks, place)
        else:
            _add_system(messages, "\n".join(_texts(blocks, place)))
    return messages


def _blocks(turn: Turn) -> list[Block]:
    if isinstance(turn.content, str):
        return [Block(type="text", text=turn.content)]
    return turn.content


def _add_assistant(messages: list[Message], blocks: Iterable[Block], place: str) -> None:
    """An answer's texts are pieces of one: nothing stands between them."""
    if not messages or messages[-1].role != "assistant":
        messages.append(Message(role="assistant", content=""))
    message = messages[-1]
    for position, block in enumerate(blocks):
        where = f"{place}[{position}]"
        if block.type == "thinking":
            thought = needed(block, "thinking", where)
            message.reasoning_content = (message.reasoning_content or "") + thought
        elif block.type == "tool_use":
            call = FunctionCall(needed(block, "name", where), block.input or {})
            call_id = needed(block, "id", where)
            calls = message.tool_calls or []
            message.tool_calls = [*calls, ToolCall(id=call_id, type="function", function=call)]
        elif block.type != "redacted_thinking":  # nobody can read one here
            message.content += part_text(block, _TEXT, "text", where)  # type: ignore[operator]


def _add_user(messages: list[Message], blocks: Sequence[Block], place: str) -> None:
    texts = []
    for position, block in enumerate(blocks):
        where = f"{place}[{position}]"
        if block.type == "tool_result":
            messages.append(_result(block, where))
        else:
            texts.append(part_text(block, _TEXT, "text", where))
    if texts:
        _add_text(messages, "user", "\n".join(texts), to=("user",))


def _add_system(messages: list[Message], text: str) -> None:
    if all(message.role == "system" for message in messages):
        _add_text(messages, "system", text, to=("system",))
    else:
        reminder = f"<system-reminder>\n{text}\n</system-reminder>"
        _add_text(messages, "user", reminder, to=("user", "tool"))


def _add_text(messages: list[Message], role: str, text: str, *, to: Collection[str]) -> None:
    """Adds text to the last message, where its role is one of `to`, or else as a new message."""
    if messages and messages[-1].role in to:
        messages[-1].content = f"{messages[-1].content}\n{text}"
    else:
        messages.append(Message(role=role, content=text))


def _result(block: Block, where: str) -> Message:
    text = text_of(block.content or "", f"{where}.content")
    if block.is_error:  # templates have no other place for it
        text = f"Error: {text}"
    return Message(role="tool", tool_call_id=needed(block, "tool_use_id", where), content=text)


def text_of(content: str | Sequence[TextBlock], place: str) -> str:
    """The text of blocks. ApiError 400 for what is none."""
    if isinstance(content, str):
        return content
    return "\n".join(_texts(content, place))


def _texts(blocks: Sequence[Block | TextBlock], place: str) -> list[str]:
    return [
        part_text(block, _TEXT, "text", f"{place}[{index}]") for index, block in enumerate(blocks)
    ]


def needed(struct: Any, name: str, place: str) -> Any:
    """The field of an object at `place`. ApiError 400 where there is none."""
    value = getattr(struct, name)
    if value is None:
        raise errors.missing(f"{place}.{name}")
    return value
