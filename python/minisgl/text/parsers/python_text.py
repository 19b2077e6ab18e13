"""Reads Python literals as they arrive, and writes them as JSON."""

from __future__ import annotations

import json
import math
import re

from minisgl.text.parsers.json_text import json_string
from minisgl.text.parsers.source import Markers, Sink, Source, Steps

WORD = re.compile(r"[-+.\w]*")
WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false"}
WORDS["null"] = "null"
MAX_DEPTH = 32
MAX_WORD = 512
JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
ESCAPES = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "b": "\b",
    "f": "\f",
    "a": "\a",
    "v": "\v",
    "0": "\0",
    "\\": "\\",
    "'": "'",
    '"': '"',
    "\n": "",
}
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
HEX = re.compile(r"[0-9a-fA-F]*")
STRING_ENDS = {quote: Markers([quote, "\\"]) for quote in ("'", '"', "'''", '"""')}


def read_literal(source: Source, sink: Sink, depth: int = 0) -> Steps[bool]:
    """Gives `sink` the JSON of a literal as it comes. Whether it is whole; where it isn't, what
    `sink` got is its beginning.
    """
    first = yield from source.peek()
    if first in ("'", '"'):
        return (yield from read_string(source, sink))
    if first in ("[", "(", "{") and first and depth < MAX_DEPTH:
        return (yield from _read_container(source, sink, depth))
    word = yield from source.run(WORD, MAX_WORD)
    value = WORDS.get(word) or _number(word)
    if not value or source.ended or len(word) == MAX_WORD:
        return False
    sink(value)
    return True


def read_string(source: Source, sink: Sink) -> Steps[bool]:
    """As `read_literal`, for a string."""
    quote = yield from source.starts("'''", '"""')
    if not quote:
        quote = yield from source.starts("'", '"')
    if not quote:
        return False
    sink('"')
    while True:
        marker = yield from source.until(STRING_ENDS[quote], lambda text: sink(json_string(text)))
        if marker is None:
            return False
        if marker == quote:
            sink('"')
            return True
        if (yield from source.peek()) == "":
            return False
        sink(json_string((yield from _read_escape(source))))


def _read_escape(source: Source) -> Steps[str]:
    character = source.take(source.at + 1)
    if character in ESCAPES:
        return ESCAPES[character]
    if character in HEX_DIGITS:
        digits = yield from source.run(HEX, HEX_DIGITS[character])
        code = int(digits, 16) if len(digits) == HEX_DIGITS[character] else -1
        return chr(code) if 0 <= code <= 0x10FFFF else "\\" + character + digits
    return "\\" + character


def _read_container(source: Source, sink: Sink, depth: int) -> Steps[bool]:
    opener = source.take(source.at + 1)
    closer = {"[": "]", "(": ")", "{": "}"}[opener]
    keyed = opener == "{"
    sink("{" if keyed else "[")
    begun = False
    while True:
        yield from source.space()
        if (yield from source.starts(closer)):
            sink("}" if keyed else "]")
            return True
        if begun:
            sink(", ")
        begun = True
        if keyed and not (yield from _read_key(source, sink)):
            return False
        if not (yield from read_literal(source, sink, depth + 1)):
            return False
        yield from source.space()
        if not (yield from source.starts(",")) and not (yield from source.sees(closer)):
            return False


def _read_key(source: Source, sink: Sink) -> Steps[bool]:
    """A key with its colon. A number, True, False and None become strings, as JSON needs."""
    first = yield from source.peek()
    if first in ("'", '"'):
        if not (yield from read_string(source, sink)):
            return False
    else:
        word = yield from source.run(WORD, MAX_WORD)
        value = WORDS.get(word) or _number(word)
        if not value or source.ended or len(word) == MAX_WORD:
            return False
        sink(f'"{value}"')
    yield from source.space()
    if not (yield from source.starts(":")):
        return False
    sink(": ")
    yield from source.space()
    return True


def _number(word: str) -> str:
    """The JSON of a number, "" where it is none."""
    if JSON_NUMBER.fullmatch(word):
        return word
    try:
        return str(int(word, 0))
    except ValueError:
        pass
    try:
        value = float(word)
    except ValueError:
        return ""
    return json.dumps(value) if math.isfinite(value) else ""
