"""The form of a whole answer, as the grammar process is told it: thoughts, then calls of tools, a
given form, or any text in which calls stand.

Where a text that is written here holds a key of `special_tokens`, the model writes the token of
that id; the rest it writes as text.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from minisgl.text.grammar_messages import GrammarSource


class CallForm(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a model writes a call of one tool."""

    name: str  # the tool's, for errors
    before: str  # up to its arguments
    schema: dict[str, Any]  # the JSON schema of what stands there
    after: str  # behind it
    # The arguments are one JSON value, or are written one by one: between tags, or as Python's.
    style: Literal["json", "xml", "python"] = "json"


class CallsForm(msgspec.Struct, frozen=True, omit_defaults=True):
    """`begin`, a call, with `parallel` any number of others, each behind `between`, and `end`."""

    calls: list[CallForm]
    begin: str = ""
    between: str = ""
    end: str = ""
    parallel: bool = True


class FreeText(msgspec.Struct, frozen=True, omit_defaults=True):
    """Any text in which what would be read as a call is one of some calls.

    They stand behind the first of `openers`, with which `begin` begins or, where that is empty,
    `before` of each call; the other openers don't occur. With `heads`, nothing announces calls:
    they begin at the start of a line, and nothing but calls follows.
    """

    openers: list[str] = []
    # An expression for all that would be read, at a line's start, as a call's beginning.
    like: str = ""
    heads: list[str] = []  # per call: an expression for what stands before its arguments


class ThoughtForm(msgspec.Struct, frozen=True, omit_defaults=True):
    """A thought: any text up to what ends it."""

    ends: list[str]
    begin: str = ""  # nothing: the prompt has begun it
    after: str = ""
    excluded: list[str] = []  # what can't stand in it either


class AnswerForm(msgspec.Struct, frozen=True, omit_defaults=True):
    """An answer. With both `form` and `calls` it is one of them."""

    thoughts: list[ThoughtForm] = []  # one of them comes first
    needs_thought: bool = False  # else it may be missing
    several_thoughts: bool = False
    shown_tokens: list[int] = []  # ids of special tokens that may stand in thoughts and free text
    form: GrammarSource | None = None
    before_form: str = ""
    never_begins: list[str] = []  # what would make a call or a thought of a form
    calls: CallsForm | None = None
    free: FreeText | None = None  # `calls` stand in it
    special_tokens: dict[str, int] = {}


def escaped(text: str) -> str:
    """A text as a part of an expression between slashes."""
    return re.sub(r"([\\.+*?()|\[\]{}^$/])", r"\\\1", text).replace("\n", "\\n")
