"""Mistral's calls: [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], and since version 11 of
its tokenizer [TOOL_CALLS]name[ARGS]{...}, one after the other.
"""

from __future__ import annotations

import re

from minisgl.text.parsers.formats import CallSyntax, ParserContext, ToolFormat
from minisgl.text.parsers.json_text import ObjectRules, is_name, read_arguments, read_calls
from minisgl.text.parsers.output import Output
from minisgl.text.parsers.source import Flow, Source, Steps

IN_NAMES = r"[^\s\[\]{}\"<>()=]"
NAME = re.compile(f"{IN_NAMES}*")
ID = re.compile(r"\w*")


def _read(opener: str, source: Source, out: Output, context: ParserContext) -> Steps[bool]:
    yield from source.space()
    if (yield from source.sees("[", "{")):
        return (yield from read_calls(source, out, ObjectRules()))
    name = yield from source.run(NAME, 257)
    if not is_name(name):
        return False
    yield from source.space()
    if (yield from source.starts("[CALL_ID]")):
        yield from source.run(ID, 64)
    announced = yield from source.starts("[ARGS]")
    yield from source.space()
    first = yield from source.peek()
    if first != "{" and not (announced and source.ended):
        return False
    source.commit()
    out.call(name)
    if (yield from read_arguments(source, out.arguments, into=Flow.ARGUMENTS)):
        out.marker()
        source.mark()
        return True
    return source.ended


MISTRAL = ToolFormat(
    read=_read,
    openers=("[TOOL_CALLS]",),
    inner=("[ARGS]", "[CALL_ID]"),
    syntax=CallSyntax(
        begin="[TOOL_CALLS][", before="", between=", ", end="]", arguments_key="arguments"
    ),
    short_ids=True,
)
MISTRAL_ARGS = ToolFormat(
    read=_read,
    openers=MISTRAL.openers,
    inner=MISTRAL.inner,
    syntax=CallSyntax(before="[TOOL_CALLS]{name}[ARGS]", names=f"{IN_NAMES}+"),
    short_ids=True,
)
