"""The arguments of a call that may be cut off, as a JSON object."""

from __future__ import annotations

import re
from typing import Any

import msgspec

_object_decoder = msgspec.json.Decoder(dict[str, Any])
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|["{}\[\],:]', re.DOTALL)
_CLOSERS = {"{": "}", "[": "]"}


def whole_part(text: str) -> str:
    """A JSON object with all of `text` that is certain: without a last key or value that isn't
    whole. It is empty where `text` is no object.
    """
    for candidate in (text, _closed(text)):
        try:
            _object_decoder.decode(candidate)
        except (ValueError, RecursionError):
            continue
        return candidate
    return "{}"


def _closed(text: str) -> str:
    """The text up to its last whole value, with the brackets that are open there closed."""
    open_brackets: list[str] = []
    end, closers = 0, ""
    after_colon = False
    for token in _TOKEN.finditer(text):
        kind, whole = token.group()[0], token.end()
        if token.group() == '"':  # the text ends within a string
            break
        if kind in _CLOSERS:
            open_brackets.append(_CLOSERS[kind])
        elif kind in "}]":
            if not open_brackets or open_brackets.pop() != kind:
                break
        elif kind == ",":
            whole = token.start()
        elif kind == ":" or not (after_colon or open_brackets[-1:] == ["]"]):  # or a key
            whole = 0
        after_colon = kind == ":"
        if whole:
            end, closers = whole, "".join(reversed(open_brackets))
        if not open_brackets:
            break
    return text[:end] + closers
