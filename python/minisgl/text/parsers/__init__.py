"""Parsers of answers: thoughts and calls in the formats that models write, exact however the text
is cut into pieces.

A format is a ToolFormat or a ReasoningFormat (formats.py), made in a file of its own and named in
registry.py. Its readers are generators over a Source (source.py) that tell an Output (output.py)
what they find. What looks like a call and turns out to be none is text; an answer that is cut off
behind a function's name ends within a call, one cut off before that is text.
"""

from minisgl.text.parsers.formats import CallSyntax, ParserContext, ReasoningFormat, ToolFormat
from minisgl.text.parsers.registry import (
    REASONING_PARSERS,
    TOOL_PARSERS,
    is_harmony,
    make_parser,
    marker_tokens,
    reasoning_parser_for,
    tool_parser_for,
)

__all__ = [
    "REASONING_PARSERS",
    "TOOL_PARSERS",
    "CallSyntax",
    "ParserContext",
    "ReasoningFormat",
    "ToolFormat",
    "is_harmony",
    "make_parser",
    "marker_tokens",
    "reasoning_parser_for",
    "tool_parser_for",
]
