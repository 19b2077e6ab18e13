"""DeepSeek's calls. V3 and R1 name the kind before the function and fence the arguments; V3.1
writes both bare. Either is read as it comes.
"""

from __future__ import annotations

import re

from minisgl.text.parsers.formats import CallSyntax, ParserContext, ToolFormat
from minisgl.text.parsers.json_text import is_name, read_arguments
from minisgl.text.parsers.output import Output
from minisgl.text.parsers.source import Flow, Source, Steps


def _token(words: str) -> str:
    """The text of a special token: a wide bar on each side, and a low bar between the words."""
    return f"<\uff5c{words.replace(' ', chr(0x2581))}\uff5c>"


CALLS_BEGIN, CALLS_END = _token("tool calls begin"), _token("tool calls end")
CALL_BEGIN, CALL_END = _token("tool call begin"), _token("tool call end")
SEPARATOR = _token("tool sep")

IN_NAMES = r"[^\s<>{}\"`]"
NAME = re.compile(f"{IN_NAMES}*")
LANGUAGE = re.compile(r"[a-z]*")


def _read(opener: str, source: Source, out: Output, context: ParserContext) -> Steps[bool]:
    if opener == CALLS_BEGIN:
        yield from source.space()
        if not (yield from source.starts(CALL_BEGIN)):
            return False
    name = yield from source.run(NAME, 257)
    if not is_name(name) or not (yield from source.starts(SEPARATOR)):
        return False
    whole = True  # whether the name can't go on
    if name == "function" and not (yield from source.sees("{", CALL_END)):
        name = yield from source.run(NAME, 257)
        if not is_name(name):
            return False
        whole = not source.ended
    yield from source.space()
    if (yield from source.starts("```")):
        yield from source.run(LANGUAGE, 16)
        yield from source.space()
    first = yield from source.peek()
    if not whole:
        return False
    if first not in ("{", "") and not (yield from source.sees(CALL_END, "```")):
        return False
    source.commit()
    out.call(name)
    if first == "{" and not (yield from read_arguments(source, out.arguments, into=Flow.ARGUMENTS)):
        return source.ended
    if first:
        out.end_call()
    out.marker()
    source.mark()
    yield from source.space()
    if (yield from source.starts("```")):
        yield from source.space()
    if (yield from source.starts(CALL_END)):
        source.mark()
        return True
    return source.ended


DEEPSEEK_V3 = ToolFormat(
    read=_read,
    openers=(CALLS_BEGIN, CALL_BEGIN),
    closers=(CALL_END, CALLS_END),
    inner=(SEPARATOR,),
    syntax=CallSyntax(
        begin=CALLS_BEGIN,
        before=f"{CALL_BEGIN}function{SEPARATOR}{{name}}\n```json\n",
        after=f"\n```{CALL_END}",
        between="\n",
        end=CALLS_END,
        names=f"{IN_NAMES}+",
    ),
)
DEEPSEEK_V31 = ToolFormat(
    read=_read,
    openers=DEEPSEEK_V3.openers,
    closers=DEEPSEEK_V3.closers,
    inner=DEEPSEEK_V3.inner,
    syntax=CallSyntax(
        begin=CALLS_BEGIN,
        before=f"{CALL_BEGIN}{{name}}{SEPARATOR}",
        after=CALL_END,
        end=CALLS_END,
        names=f"{IN_NAMES}+",
    ),
)
