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
    if _is_object(text):
        return text
    closed = _closed(text)
    return closed if _is_object(closed) else "{}"


def _is_object(text: str) -> bool:
    try:
        _object_decoder.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _closed(text: str) -> str:
    """The text up to its last whole value, with the brackets that are open there closed."""
    open_brackets: list[str] = []
    end = 0  # behind the last bracket that was added to these or taken from them, or later
    after_colon = False
    for token in _TOKEN.finditer(text):
        kind, whole = token.group()[0], token.end()
        if token.group() == '"':  # the text ends within a string
            break
        if kind in _CLOSERS:
            open_brackets.append(_CLOSERS[kind])
        elif kind in "}]":
            if open_brackets[-1:] != [kind]:
                break
            open_brackets.pop()
        elif kind == ",":
            whole = token.start()
        elif kind == ":" or not (after_colon or open_brackets[-1:] == ["]"]):  # or a key
            whole = 0
        after_colon = kind == ":"
        if whole:
            end = whole
        if not open_brackets:
            break
    return text[:end] + "".join(reversed(open_brackets))
