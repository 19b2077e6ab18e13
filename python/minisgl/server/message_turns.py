"""From the turns of a conversation, in blocks, to the messages that a model's template knows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from minisgl.server import errors
from minisgl.server.checks import part_text
from minisgl.server.message_schemas import Block, TextBlock, Turn
from minisgl.server.schemas import FunctionCall, Message, ToolCall

_TEXT = {"text": "text"}
# In whose messages a block that is no text may stand.
_ROLES = {
    "tool_use": "assistant",
    "thinking": "assistant",
    "redacted_thinking": "assistant",
    "tool_result": "user",
}
# Claude Code's first block says which request this is: with it no two prompts would begin alike.
_BILLING = "x-anthropic-billing-header:"


@dataclass
class _Draft:
    """A message whose pieces are put together once, however many there are."""

    role: str
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    call_id: str | None = None  # whose result it is

    def message(self) -> Message:
        """An answer's texts are pieces of one: nothing stands between them."""
        return Message(
            role=self.role,
            content=("" if self.role == "assistant" else "\n").join(self.texts),
            reasoning_content="".join(self.thoughts) if self.thoughts else None,
            tool_calls=self.calls or None,
            tool_call_id=self.call_id,
        )


def messages_of(system: str | Sequence[TextBlock] | None, turns: Sequence[Turn]) -> list[Message]:
    """The messages that a system prompt and turns stand for. ApiError 400 for what is no text.

    What a tool gave is a message of its own, before the user's words beside it. Turns of one role
    in a row are one message, as templates let user and assistant alternate. Nor do they all know
    system messages behind the first one: those are a reminder in the message before them.
    """
    drafts: list[_Draft] = []
    if system is not None:
        if not isinstance(system, str):
            system = [block for block in system if not (block.text or "").startswith(_BILLING)]
        if text := text_of(system, "system"):
            drafts.append(_Draft("system", [text]))
    for index, turn in enumerate(turns):
        place = f"messages[{index}].content"
        blocks = _blocks(turn)
        if not blocks:
            raise errors.bad_request(f"'{place}' has no block.", param=place)
        if turn.role == "assistant":
            _add_assistant(drafts, blocks, place)
        elif turn.role == "user":
            _add_user(drafts, blocks, place)
        else:
            _add_system(drafts, "\n".join(_texts(blocks, place)))
    return [draft.message() for draft in drafts]


def _blocks(turn: Turn) -> list[Block]:
    if isinstance(turn.content, str):
        return [Block(type="text", text=turn.content)]
    return turn.content


def _add_assistant(drafts: list[_Draft], blocks: Iterable[Block], place: str) -> None:
    draft = _last(drafts, "assistant", among=("assistant",))
    for position, block in enumerate(blocks):
        where = f"{place}[{position}]"
        if block.type == "thinking":
            draft.thoughts.append(needed(block, "thinking", where))
        elif block.type == "tool_use":
            call = FunctionCall(needed(block, "name", where), block.input or {})
            call_id = needed(block, "id", where)
            draft.calls.append(ToolCall(id=call_id, type="function", function=call))
        elif block.type != "redacted_thinking":  # nobody can read one here
            draft.texts.append(_text(block, where))


def _add_user(drafts: list[_Draft], blocks: Sequence[Block], place: str) -> None:
    texts = []
    for position, block in enumerate(blocks):
        where = f"{place}[{position}]"
        if block.type == "tool_result":
            drafts.append(_result(block, where))
        else:
            texts.append(_text(block, where))
    if texts:
        _last(drafts, "user", among=("user",)).texts += texts


def _add_system(drafts: list[_Draft], text: str) -> None:
    if not drafts or drafts[-1].role == "system":  # none of another role is before it
        _last(drafts, "system", among=("system",)).texts.append(text)
    else:
        reminder = f"<system-reminder>\n{text}\n</system-reminder>"
        _last(drafts, "user", among=("user", "tool")).texts.append(reminder)


def _last(drafts: list[_Draft], role: str, *, among: Collection[str]) -> _Draft:
    """The last message, where its role is one of these, or else a new one of `role`."""
    if not drafts or drafts[-1].role not in among:
        drafts.append(_Draft(role))
    return drafts[-1]


def _result(block: Block, where: str) -> _Draft:
    text = text_of(block.content or "", f"{where}.content")
    if block.is_error:  # templates have no other place for it
        text = f"Error: {text}"
    return _Draft("tool", [text], call_id=needed(block, "tool_use_id", where))


def text_of(content: str | Sequence[TextBlock], place: str) -> str:
    """The text of blocks. ApiError 400 for what is none."""
    if isinstance(content, str):
        return content
    return "\n".join(_texts(content, place))


def _texts(blocks: Sequence[Block | TextBlock], place: str) -> list[str]:
    return [_text(block, f"{place}[{index}]") for index, block in enumerate(blocks)]


def _text(block: Block | TextBlock, place: str) -> str:
    if (role := _ROLES.get(block.type)) is not None:
        raise errors.bad_request(
            f"A block of the type '{block.type}' may only stand in a message of the role '{role}'.",
            param=f"{place}.type",
        )
    return part_text(block, _TEXT, "text", place)


def needed(struct: Any, name: str, place: str) -> Any:
    """The field of an object at `place`. ApiError 400 where there is none."""
    value = getattr(struct, name)
    if value is None:
        raise errors.missing(f"{place}.{name}")
    return value
