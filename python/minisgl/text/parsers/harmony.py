"""gpt-oss's harmony: messages of several channels and recipients make an answer.

<|channel|>analysis<|message|>...<|end|> is a thought; one to=functions.f is a call, whose text is
the arguments up to <|call|>; all others are content. A header that the answer's end cuts off has
no text.
"""

from __future__ import annotations

import re

from minisgl.text.parsers.formats import CallSyntax, ParserContext
from minisgl.text.parsers.json_text import is_name, read_value
from minisgl.text.parsers.output import Output
from minisgl.text.parsers.source import NOTHING, Flow, Markers, Source, Steps

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
ALL = Markers([START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS])

CALL = CallSyntax(
    before=f"{CHANNEL}commentary to=functions.{{name}} {CONSTRAIN}json{MESSAGE}", names=r"[^\s<]+"
)
# Messages that come before one that ends an answer: thoughts, and what is said before a call.
THOUGHT, PREAMBLE = (f"{CHANNEL}{channel}{MESSAGE}" for channel in ("analysis", "commentary"))
FINAL = f"{CHANNEL}final{MESSAGE}"
NEXT = f"{START}assistant"  # behind <|end|>

CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")
RECIPIENT = re.compile(r"(?:^|[\s>\w])to=([^\s<]+)")


def read_harmony(
    source: Source, out: Output, context: ParserContext, *, thoughts: bool, calls: bool
) -> Steps[None]:
    """Reads a whole answer. What isn't asked for, `thoughts` or `calls`, is content."""
    out.text((yield from source.space()))
    # The prompt ends with <|start|>assistant: the recipient may come first.
    opened = yield from source.starts("to=")
    while True:
        if opened:
            header, begin = yield from _read_header(source, opened, out)
            if header is None:
                return
            if calls and (name := _function(header)):
                marker = yield from _read_call(source, out, name, held=context.held)
            else:
                if thoughts and _channel(header) == "analysis":
                    out.begin_thought(begin)
                marker = yield from _read_text(source, out, header, context)
        else:
            marker = yield from source.until(ALL, out.text, into=Flow.TEXT)
            if marker is not None:
                out.marker()
        if marker is None:
            return
        opened = marker if marker in (START, CHANNEL) else ""
        out.end_thought(source.position - len(opened))


def _read_header(source: Source, opened: str, out: Output) -> Steps[tuple[str | None, int]]:
    """The text from `opened` to <|message|>, and where it begins; no text at the answer's end.
    Without any marker it is content.
    """
    pieces, marked, begin = [opened], False, source.position - len(opened)
    while True:
        marker = yield from source.until(ALL, pieces.append)
        if marker is None:
            if not marked and opened not in ALL.texts:
                out.text("".join(pieces))
            return None, begin
        marked = True
        if marker == MESSAGE:
            return "".join(pieces), begin
        if marker in (START, *ENDS):
            pieces.clear()
            begin = source.position - len(marker)
        pieces.append(marker)


def _function(header: str) -> str:
    """The function that a message calls, "" where it calls none."""
    found = RECIPIENT.search(header)
    recipient = found.group(1) if found else ""
    name = recipient.removeprefix("functions.")
    return name if is_name(name) and recipient not in ("assistant", "user") else ""


def _read_call(source: Source, out: Output, name: str, *, held: bool) -> Steps[str | None]:
    """Reads a call's arguments, and the marker that ends it, which it returns."""
    out.call(name)
    if held and (yield from source.sees("{")):
        yield from read_value(source, out.arguments, into=Flow.ARGUMENTS)
    marker = yield from source.until(ALL, out.arguments, into=Flow.ARGUMENTS)
    if marker is not None:
        out.end_call()
        out.marker()
    return marker


def _channel(header: str) -> str:
    found = CHANNEL_NAME.search(header)
    return found.group(1) if found else ""


def _read_text(
    source: Source, out: Output, header: str, context: ParserContext
) -> Steps[str | None]:
    """As `_read_call`, for a message that is a thought or content."""
    out.marker()
    whole = context.form and _channel(header) == "final"  # there are no markers in it
    marker = yield from source.until(NOTHING if whole else ALL, out.text, into=Flow.TEXT)
    if marker is not None:
        out.marker()
    return marker
