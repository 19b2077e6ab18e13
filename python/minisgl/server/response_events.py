"""The output items of a response, as its deltas come, and the events that tell of them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from minisgl.server.logprobs import chat_logprobs
from minisgl.server.sse import encode_json
from minisgl.text.parts import ArgumentsPart, CallPart, ReasoningPart, TextPart

if TYPE_CHECKING:
    from minisgl.server.choice import Delta, TokenEntry
    from minisgl.text.parts import Part
    from minisgl.tokenizer import Tokenizer

# The events of an item's text.
_TEXT = "response.output_text"
_REASONING = "response.reasoning_text"
_ARGUMENTS = "response.function_call_arguments"


class EventWriter:
    """Writes events, each with its number."""

    def __init__(self) -> None:
        self._number = 0

    def event(self, kind: str, **fields: Any) -> bytes:
        """One event, whole."""
        return self.framed(self.head(kind), encode_json(fields)[1:-1])

    def head(self, kind: str) -> bytes:
        """The beginning of each event of a kind."""
        name = kind.encode()
        return b'event: %b\ndata: {"type":"%b",' % (name, name)

    def framed(self, head: bytes, fields: bytes) -> bytes:
        """An event of a head and its other fields, which are JSON without braces."""
        data = b'%b%b,"sequence_number":%d}\n\n' % (head, fields, self._number)
        self._number += 1
        return data


class _OpenItem:
    """The item that grows, and what its text is in."""

    def __init__(self, item: dict[str, Any], index: int, kind: str, writer: EventWriter) -> None:
        self.item = item
        self.kind = kind  # of its events
        self.texts: list[str] = []
        self.logprobs: list[dict[str, Any]] = []
        self.place: dict[str, Any] = {"item_id": item["id"], "output_index": index}
        if kind != _ARGUMENTS:
            self.place["content_index"] = 0
        # Encoded once: there is one delta for each token.
        self.delta_head = writer.head(f"{kind}.delta") + encode_json(self.place)[1:-1]

    def content(self) -> dict[str, Any]:
        """The item's content part, as it is now."""
        text = "".join(self.texts)
        if self.kind == _REASONING:
            return {"type": "reasoning_text", "text": text}
        return {
            "type": "output_text",
            "text": text,
            "annotations": [],
            "logprobs": self.logprobs,
        }


class ResponseOutput:
    """Makes items, and their events, of one answer's deltas."""

    def __init__(
        self, writer: EventWriter, response_hex: str, tokenizer: Tokenizer, *, has_logprobs: bool
    ) -> None:
        """`response_hex`: what the items' ids have of the response's."""
        self.items: list[dict[str, Any]] = []
        self._writer = writer
        self._hex = response_hex
        self._tokenizer = tokenizer
        self._has_logprobs = has_logprobs
        self._entries: list[TokenEntry] = []  # of tokens whose text hasn't come yet
        self._open: _OpenItem | None = None

    def add(self, delta: Delta) -> bytes:
        """Takes the next delta. Returns its events, or b"" where it has nothing to show."""
        if delta.parts is None:
            self._entries += delta.entries
            return self._continue(_TEXT) + self._text(delta.text) if delta.text else b""
        if not self._has_logprobs:
            return b"".join([self._add_part(part) for part in delta.parts])
        self._entries += delta.entries
        read = zip(delta.parts, delta.part_ends, strict=True)
        return b"".join([self._add_read(part, end) for part, end in read])

    def finish(self, *, complete: bool) -> bytes:
        """The answer has its end; `complete`: it isn't cut there. Returns the last item's events.
        An answer without words is a message without any.
        """
        data = b""
        if not self.items:
            data = self._begin_message()
        elif self._open is None:
            return data
        return data + self._close("completed" if complete else "incomplete")

    def _add_read(self, part: Part, end: int) -> bytes:
        """Takes a part that was certain when so many characters of the answer had been read. Log
        probabilities of thoughts, calls and markers aren't shown: only content has a place for
        them.
        """
        count = sum(1 for entry in self._entries if entry.offset < end)
        later, self._entries = self._entries[count:], self._entries[:count]
        if isinstance(part, TextPart) and (self._open is None or self._open.kind != _TEXT):
            self._entries = self._entries[self._num_before(part.text) :]
        data = self._add_part(part)
        self._entries = later
        return data

    def _num_before(self, text: str) -> int:
        """How many of the tokens that are held stand before a text at their end, as markers do."""
        held = [self._tokenizer.token_bytes(entry.token_id) for entry in self._entries]
        begin = b"".join(held).rfind(text.encode())
        ends = itertools.accumulate(map(len, held))
        return sum(1 for end in ends if end <= begin)

    def _add_part(self, part: Part) -> bytes:
        if isinstance(part, TextPart):
            return self._continue(_TEXT) + self._text(part.text)
        if isinstance(part, ReasoningPart):
            return self._continue(_REASONING) + self._grow(part.text)
        if isinstance(part, CallPart):
            return self._close() + self._begin_call(part)
        assert isinstance(part, ArgumentsPart)
        return self._grow(part.text)

    def _continue(self, kind: str) -> bytes:
        """Sees to it that an item of a kind is open."""
        if self._open is not None and self._open.kind == kind:
            return b""
        begin = self._begin_message if kind == _TEXT else self._begin_thought
        return self._close() + begin()

    def _text(self, text: str) -> bytes:
        if not self._has_logprobs:
            return self._grow(text, b',"logprobs":[]')
        assert self._open is not None
        entries, self._entries = self._entries, []
        logprobs = chat_logprobs(self._tokenizer, entries)["content"]
        self._open.logprobs += logprobs
        return self._grow(text, b',"logprobs":' + encode_json(logprobs))

    def _grow(self, text: str, more: bytes = b"") -> bytes:
        grown = self._open
        assert grown is not None
        grown.texts.append(text)
        return self._writer.framed(
            grown.delta_head, b"%b%b" % (b',"delta":' + encode_json(text), more)
        )

    def _begin_message(self) -> bytes:
        item = {
            "id": self._id("msg"),
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        return self._begin(item, _TEXT)

    def _begin_thought(self) -> bytes:
        item = {
            "id": self._id("rs"),
            "type": "reasoning",
            "status": "in_progress",
            "summary": [],
            "content": [],
        }
        return self._begin(item, _REASONING)

    def _begin_call(self, part: CallPart) -> bytes:
        item = {
            "id": self._id("fc"),
            "type": "function_call",
            "status": "in_progress",
            "call_id": part.id,
            "name": part.name,
            "arguments": "",
        }
        return self._begin(item, _ARGUMENTS)

    def _begin(self, item: dict[str, Any], kind: str) -> bytes:
        index = len(self.items)
        self.items.append(item)
        self._open = begun = _OpenItem(item, index, kind, self._writer)
        event = self._writer.event
        data = event("response.output_item.added", output_index=index, item=item)
        if kind != _ARGUMENTS:
            data += event("response.content_part.added", **begun.place, part=begun.content())
        return data

    def _close(self, status: str = "completed") -> bytes:
        """The open item is whole."""
        if (closed := self._open) is None:
            return b""
        self._open = None
        item, place, event = closed.item, closed.place, self._writer.event
        item["status"] = status
        if closed.kind == _ARGUMENTS:
            item["arguments"] = "".join(closed.texts)
            data = event(
                f"{_ARGUMENTS}.done", **place, name=item["name"], arguments=item["arguments"]
            )
        else:
            content = closed.content()
            item["content"] = [content]
            more = {"logprobs": closed.logprobs} if closed.kind == _TEXT else {}
            data = event(f"{closed.kind}.done", **place, text=content["text"], **more)
            data += event("response.content_part.done", **place, part=content)
        index = place["output_index"]
        return data + event("response.output_item.done", output_index=index, item=item)

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._hex}_{len(self.items)}"
