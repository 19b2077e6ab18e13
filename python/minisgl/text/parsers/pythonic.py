"""Calls as a list of Python's: [f(a=1), g(b="x")], as Llama 3.2 and 4 write them."""

from __future__ import annotations

import re

from minisgl.text.parsers.formats import CallSyntax, ParserContext, ToolFormat
from minisgl.text.parsers.json_text import is_name, json_string
from minisgl.text.parsers.output import Output
from minisgl.text.parsers.python_text import read_literal
from minisgl.text.parsers.source import Source, Steps

NAME = re.compile(r"[\w.\-]*")
KEYWORD = re.compile(r"\w*")


def _read(opener: str, source: Source, out: Output, context: ParserContext) -> Steps[bool]:
    if opener != "[":
        yield from source.space()
    if not (yield from source.starts("[")):
        return False
    while True:
        yield from source.space()
        if not (yield from _read_call(source, out, context)):
            return False
        yield from source.space()
        comma = yield from source.starts(",")
        if comma:
            yield from source.space()
        if (yield from source.starts("]")):
            source.mark()
            return True
        if not comma:
            return source.ended


def _read_call(source: Source, out: Output, context: ParserContext) -> Steps[bool]:
    name = yield from source.run(NAME, 257)
    known = not context.tool_names or name in context.tool_names
    if not is_name(name) or not known or not (yield from source.starts("(")):
        return False
    begun = False
    while True:
        yield from source.space()
        if (yield from source.starts(")")):
            break
        keyword = yield from source.run(KEYWORD, 257)
        yield from source.space()
        equals = keyword and (yield from source.starts("="))
        if not equals and not source.ended:
            return False
        if not begun:
            source.commit()
            out.call(name)
        if not equals:
            return True  # cut off
        out.arguments((", " if begun else "{") + f'"{json_string(keyword)}": ')
        begun = True
        yield from source.space()
        if not (yield from read_literal(source, out.arguments)):
            return False
        yield from source.space()
        if not (yield from source.starts(",")) and not (yield from source.sees(")")):
            return False
    if not begun:
        source.commit()
        out.call(name)
    else:
        out.arguments("}")
    out.end_call()
    out.marker()
    source.mark()
    return True


PYTHONIC = ToolFormat(
    read=_read,
    openers=("<|python_start|>", "<|python_tag|>"),
    closers=("<|python_end|>",),
    unannounced=("[",),
    syntax=CallSyntax(
        begin="[",
        before="{name}(",
        after=")",
        between=", ",
        end="]",
        style="python",
        names=r"[\w.\-]+",
        like=r"\[\s*({names})\(",
        head=r"\[{name}\(",
    ),
)
