"""Thoughts: what an answer begins with, between two markers. What opens one behind the answer's
beginning is text, and so is any marker of calls within a thought.
"""

from __future__ import annotations

from minisgl.text.parsers.formats import ParserContext, ReasoningFormat
from minisgl.text.parsers.output import Output
from minisgl.text.parsers.source import Flow, Markers, Source, Steps

TAGS = {"<think>": "</think>"}

THINK = ReasoningFormat(TAGS)
DEEPSEEK_R1 = ReasoningFormat(TAGS, inside=True)
MISTRAL_THINK = ReasoningFormat({"[THINK]": "[/THINK]"}, closing="{end}")

# Granite 3.2 says it in words; later versions use tags, and wrap the answer too.
GRANITE_THINK = ReasoningFormat(
    {
        "Here is my thought process:": "Here is my response:",
        "Here's my thought process:": "Here's my response:",
        "<think>": "</think>",
    },
    same_ends=("Here is my response:", "Here's my response:"),
    wrapper=("<response>", "</response>"),
)


def read_thought(
    source: Source, out: Output, format: ReasoningFormat, context: ParserContext
) -> Steps[bool]:
    """Reads the thought that an answer begins with. Whether there is one, and it has ended."""
    end = format.begins_inside(context.prompt_end)
    if end is not None:
        out.begin_thought(-1)
    source.mark()
    yield from source.space()
    begin = yield from source.starts(*format.ends)
    if begin:
        source.commit()
        if end is None:
            out.begin_thought(source.position - len(begin))
        else:  # once more what the prompt has said
            out.marker()
        end = format.ends[begin]
    else:
        source.retry(out.text)
    if end is None:
        return False
    ends = Markers(format.ends_like(end))
    if (yield from source.until(ends, out.text, into=Flow.TEXT)) is None:
        return False
    out.marker()
    out.end_thought(source.position)
    if format.wrapper and not context.form:
        source.mark()
        yield from source.space()
        if (yield from source.starts(format.wrapper[0])):
            source.commit()
            out.marker()
        else:
            source.retry(out.text)
    return True
