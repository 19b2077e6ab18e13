"""The content blocks of an answer, as its parts come, and the events that tell of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from minisgl.server.partial_json import whole_part
from minisgl.server.sse import encode_json
from minisgl.text.parts import CallPart, Part, ReasoningPart, TextPart

# Nobody signs thoughts here. Clients send only those back that have a signature.
SIGNATURE = "bWluaXNnbA=="

# A block's type -> of its deltas the type, and the field with the text.
_DELTAS = {
    "text": (b"text_delta", b"text"),
    "thinking": (b"thinking_delta", b"thinking"),
    "tool_use": (b"input_json_delta", b"partial_json"),
}


def event(kind: str, **fields: Any) -> bytes:
    """One event, whole."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode_json({"type": kind, **fields}))


PING = event("ping")


class MessageOutput:
    """Makes content blocks, and their events, of one answer's parts."""

    def __init__(self, *, shows_thoughts: bool, keeps_blocks: bool) -> None:
        """`shows_thoughts`: whether a thought's block has its text. `keeps_blocks`: whether the
        blocks are read in the end, and not just their events.
        """
        self.blocks: list[dict[str, Any]] = []  # those that are kept
        self._num_blocks = 0
        self._shows_thoughts = shows_thoughts
        self._keeps_blocks = keeps_blocks
        self._kind = ""  # of the block that grows; "": none does
        self._texts: list[str] = []  # of that block
        self._delta_head = b""

    def add(self, parts: Sequence[Part]) -> bytes:
        """Takes the next parts. Returns their events."""
        return b"".join([self._add(part) for part in parts])

    def finish(self) -> bytes:
        """The last block is whole, or the answer is cut within it. Returns its last events."""
        kind, self._kind = self._kind, ""
        if not kind:
            return b""
        if self._keeps_blocks:
            self._fill(self.blocks[-1], kind)
        index = self._num_blocks - 1
        signed = b""
        if kind == "thinking":
            delta = {"type": "signature_delta", "signature": SIGNATURE}
            signed = event("content_block_delta", index=index, delta=delta)
        return signed + event("content_block_stop", index=index)

    def _fill(self, block: dict[str, Any], kind: str) -> None:
        text = "".join(self._texts)
        self._texts.clear()
        if kind == "tool_use":
            block["input"] = msgspec.Raw(whole_part(text).encode())
        else:
            block[kind] = text
        if kind == "thinking":
            block["signature"] = SIGNATURE

    def _add(self, part: Part) -> bytes:
        if isinstance(part, CallPart):
            return self._begin("tool_use", id=part.id, name=part.name, input={})
        begun = b""
        if isinstance(part, TextPart):
            if self._kind != "text":
                begun = self._begin("text", text="", citations=None)
        elif isinstance(part, ReasoningPart):
            if self._kind != "thinking":
                begun = self._begin("thinking", thinking="", signature="")
            if not self._shows_thoughts:
                return begun
        if self._keeps_blocks:
            self._texts.append(part.text)
        return b"%b%b%b}}\n\n" % (begun, self._delta_head, encode_json(part.text))

    def _begin(self, kind: str, **fields: Any) -> bytes:
        before = self.finish()
        index = self._num_blocks
        self._num_blocks += 1
        block = {"type": kind, **fields}
        data = before + event("content_block_start", index=index, content_block=block)
        if self._keeps_blocks:
            self.blocks.append(block)
        self._kind = kind
        delta_type, field = _DELTAS[kind]
        # Encoded once: there is one delta for each token.
        self._delta_head = (
            b"event: content_block_delta\n"
            b'data: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":'
            % (index, delta_type, field)
        )
        return data if index else data + PING
