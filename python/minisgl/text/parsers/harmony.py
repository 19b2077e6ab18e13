"""gpt-oss's harmony: messages of several channels and recipients make an answer.

<|channel|>analysis<|message|>...<|end|> is a thought; one to=functions.f is a call, whose text is
the arguments up to <|call|>; all others are content. A header that the answer's end cuts off has
no text.
"""

from __future__ import annotations

import re

from minisgl.text.parsers.json_text import is_name
from minisgl.text.parsers.output import Output
from minisgl.text.parsers.source import Markers, Source, Steps

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
ALL = Markers([START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS])

CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")
RECIPIENT = re.compile(r"(?:^|[\s>\w])to=([^\s<]+)")


def read_harmony(source: Source, out: Output, *, thoughts: bool, calls: bool) -> Steps[None]:
    """Reads a whole answer. What isn't asked for, `thoughts` or `calls`, is content."""
    out.text((yield from source.space()))
    # The prompt ends with <|start|>assistant: the recipient may come first.
    opened = yield from source.starts("to=")
    while True:
        if opened:
            header = yield from _read_header(source, opened, out)
            if header is None:
                return
            marker = yield from _read_message(source, out, header, thoughts, calls)
        else:
            marker = yield from source.until(ALL, out.text, flows=True)
            if marker is not None:
                out.marker()
        if marker is None:
            return
        out.thinking = False
        opened = marker if marker in (START, CHANNEL) else ""


def _read_header(source: Source, opened: str, out: Output) -> Steps[str | None]:
    """The text from `opened` to <|message|>; None at the answer's end. Without any marker it is
    content.
    """
    pieces, marked = [opened], False
    while True:
        marker = yield from source.until(ALL, pieces.append)
        if marker is None:
            if not marked and opened not in ALL.texts:
                out.text("".join(pieces))
            return None
        marked = True
        if marker == MESSAGE:
            return "".join(pieces)
        if marker in (START, *ENDS):
            pieces.clear()
        pieces.append(marker)


def _read_message(
    source: Source, out: Output, header: str, thoughts: bool, calls: bool
) -> Steps[str | None]:
    """Reads a message, and the marker that ends it, which it returns."""
    found = RECIPIENT.search(header)
    name = found.group(1).removeprefix("functions.") if found else ""
    if calls and is_name(name) and name not in ("assistant", "user"):
        out.call(name)
        marker = yield from source.until(ALL, out.arguments)
        if marker is not None:
            out.end_call()
            out.marker()
        return marker
    channel = CHANNEL_NAME.search(header)
    out.marker()
    out.thinking = thoughts and channel is not None and channel.group(1) == "analysis"
    marker = yield from source.until(ALL, out.text, flows=True)
    if marker is not None:
        out.marker()
    return marker
