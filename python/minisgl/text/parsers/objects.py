"""Calls as JSON objects: Hermes (and Qwen2.5, Qwen3), Granite, Llama 3, and no marker at all."""

from __future__ import annotations

from minisgl.text.parsers.formats import CallSyntax, ParserContext, ReadCalls, ToolFormat
from minisgl.text.parsers.json_text import ObjectRules, read_calls
from minisgl.text.parsers.output import Output
from minisgl.text.parsers.source import Source, Steps


def _reader(closers: tuple[str, ...] = (), between: tuple[str, ...] = ()) -> ReadCalls:
    def read(opener: str, source: Source, out: Output, context: ParserContext) -> Steps[bool]:
        rules = ObjectRules(unannounced=opener in ("{", "["), names=context.tool_names)
        return (yield from read_calls(source, out, rules, between, closers))

    return read


# What reads objects that nothing announces takes these for the beginning of a call.
_LIKE = r'(\[\s*)?\{\s*"((name|arguments|parameters|type|id)"|[^"\\]*\\)'
_HEAD = r'\{"name": ?"{name}", ?"{key}": '

# <tool_call>{"name": ..., "arguments": {...}}</tool_call>
HERMES = ToolFormat(
    read=_reader(("</tool_call>",)),
    openers=("<tool_call>",),
    closers=("</tool_call>",),
    syntax=CallSyntax(
        before="<tool_call>\n", after="\n</tool_call>", between="\n", arguments_key="arguments"
    ),
)

# <|tool_call|>[{"name": ..., "arguments": {...}}, ...]; version 4 writes as Hermes.
GRANITE = ToolFormat(
    read=_reader(("</tool_call>",)),
    openers=("<|tool_call|>", "<tool_call>"),
    closers=("</tool_call>",),
    unannounced=("[",),
    syntax=CallSyntax(
        begin="<|tool_call|>[",
        before="",
        between=", ",
        end="]",
        arguments_key="arguments",
        like=_LIKE,
    ),
)

# {"name": ..., "parameters": {...}}; {...}, with <|python_tag|> before it or without.
LLAMA3_JSON = ToolFormat(
    read=_reader(between=(";", ",")),
    openers=("<|python_tag|>",),
    unannounced=("{", "["),
    syntax=CallSyntax(
        before="",
        between="; ",
        arguments_key="parameters",
        like=_LIKE,
        head=_HEAD.replace("{key}", "parameters"),
    ),
)

# {"name": ..., "arguments": {...}} or an array of such.
JSON = ToolFormat(
    read=_reader(between=(";", ",")),
    openers=(),
    unannounced=("{", "["),
    syntax=CallSyntax(
        before="",
        between="\n",
        arguments_key="arguments",
        like=_LIKE,
        head=_HEAD.replace("{key}", "arguments"),
    ),
)
