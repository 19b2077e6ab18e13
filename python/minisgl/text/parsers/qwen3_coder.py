"""Qwen3-Coder's calls, each tag on a line of its own: <tool_call><function=f><parameter=x>, the
value, and the closing tags. The function's JSON schema says what type a value is of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from minisgl.text.parsers.formats import CallSyntax, ParserContext, ToolFormat
from minisgl.text.parsers.json_text import escape_halves, is_name, json_string, read_value
from minisgl.text.parsers.output import Output
from minisgl.text.parsers.source import Markers, Sink, Source, Steps
from minisgl.text.parsers.value_types import JSON_TYPES, resolved, value_types

NAME = re.compile(r"[^\s<>]*")
PARAMETER_NAME = re.compile(r"[^<>\n]*")
FUNCTION, PARAMETER = "<function=", "<parameter="
FUNCTION_END, PARAMETER_END, CALL_END = "</function>", "</parameter>", "</tool_call>"
VALUE_ENDS = Markers([PARAMETER_END, FUNCTION_END])
PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


def _read(opener: str, source: Source, out: Output, context: ParserContext) -> Steps[bool]:
    if opener != FUNCTION:
        yield from source.space()
        if not (yield from source.starts(FUNCTION)):
            return False
    name = yield from source.run(NAME, 257)
    if not is_name(name) or not (yield from source.starts(">")):
        return False
    yield from source.space()
    if not (yield from source.sees(PARAMETER, FUNCTION_END)) and not source.ended:
        return False
    source.commit()
    out.call(name)
    whole = yield from _read_parameters(source, out, context.parameters(name), held=context.held)
    if whole:
        out.end_call()
    out.marker()
    source.mark()
    return True


def _read_parameters(
    source: Source, out: Output, schema: Mapping[str, Any], *, held: bool
) -> Steps[bool]:
    """Reads parameters to the function's end. Whether it has come, or something else."""
    declared = resolved(schema, schema)
    properties, others = declared.get("properties"), declared.get("additionalProperties")
    opening = "{"
    while (yield from source.starts(PARAMETER)):
        name = yield from source.run(PARAMETER_NAME, 257)
        if not (yield from source.starts(">")):
            break
        out.arguments(f'{opening}"{json_string(name.strip())}": ')
        opening = ", "
        one = others
        if isinstance(properties, dict):
            one = properties.get(name.strip(), others)
        ended = yield from _read_value(source, out.arguments, value_types(one, schema), held=held)
        if not ended:
            return False
        if ended == FUNCTION_END:
            out.arguments("}")
            return True
    if source.ended:
        return False
    yield from source.starts(FUNCTION_END)
    out.arguments("}" if opening != "{" else "{}")
    return True


def _read_value(source: Source, sink: Sink, types: set[str], *, held: bool) -> Steps[str]:
    """Gives `sink` the JSON of a value: that of a string, or one that is `held` to JSON, as it
    comes, another's when it is whole. Returns the marker that ended it, "" where the answer did.
    """
    yield from source.starts("\n")
    begins = ["{", "[", '"']
    if "string" in types:  # the grammar writes no text that begins as the JSON of another type
        begins = [one for kind, one in (("object", "{"), ("array", "[")) if kind in types]
    if held and begins and (yield from source.sees(*begins)):
        # A marker in one of its strings is a part of it.
        yield from read_value(source, sink)
        marker = yield from source.until(VALUE_ENDS, lambda text: None)
        yield from source.space()
        return marker or ""
    value = _String(sink) if types == {"string"} else _Typed(sink, types)
    while True:
        marker = yield from source.until(VALUE_ENDS, value.push)
        if marker is None:
            value.cut()
            return ""
        space = yield from source.space()
        # Text of the same look within a value isn't followed by what follows a value.
        followers = (PARAMETER, FUNCTION_END, CALL_END) if marker == PARAMETER_END else (CALL_END,)
        if source.ended or (yield from source.sees(*followers)):
            value.end()
            return marker
        value.push(marker)
        value.push(space)


class _String:
    """A string's value; the line break before its end isn't in it."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._held = ""
        sink('"')

    def push(self, text: str) -> None:
        text = self._held + text
        self._held = "\n" if text.endswith("\n") else ""
        if len(text) > len(self._held):
            self._sink(json_string(text[: len(text) - len(self._held)]))

    def cut(self) -> None:
        """The answer ends within the value."""

    def end(self) -> None:
        self._sink('"')


class _Typed:
    """A value whose type isn't a string's, or may be another."""

    def __init__(self, sink: Sink, types: set[str]) -> None:
        self._sink = sink
        self._types = types
        self._pieces: list[str] = []

    def push(self, text: str) -> None:
        self._pieces.append(text)

    def cut(self) -> None:
        if "string" not in self._types:
            self._sink("".join(self._pieces).lstrip())

    def end(self) -> None:
        self._sink(_typed("".join(self._pieces).removesuffix("\n"), self._types))


def _typed(text: str, types: set[str]) -> str:
    """The JSON of a value of one of `types`; a string where it is of none."""
    raw = text.strip()
    raw = PYTHON_WORDS.get(raw, raw)
    try:
        value = json.loads(raw, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return f'"{json_string(text)}"'
    kind = JSON_TYPES[type(value)]
    if "string" in types and kind not in types and not (kind == "integer" and "number" in types):
        return f'"{json_string(text)}"'
    return escape_halves(raw)


def _refuse(constant: str) -> None:
    raise ValueError(f"JSON has no {constant}")


QWEN3_CODER = ToolFormat(
    read=_read,
    openers=("<tool_call>", FUNCTION),
    closers=(FUNCTION_END, CALL_END),
    syntax=CallSyntax(
        before="<tool_call>\n<function={name}>\n",
        after="</function>\n</tool_call>",
        between="\n",
        style="xml",
        names=r"[^\s<>]+",
    ),
)
