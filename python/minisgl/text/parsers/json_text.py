"""Reads JSON values as they arrive, each character once; and calls that are written as objects."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum

from minisgl.text.parsers.output import Output
from minisgl.text.parsers.source import Flow, Sink, Source, Steps

# A key or a name, of at most 512 characters.
SHORT_STRING = re.compile(r'"(?:[^"\\]|\\.){0,512}"', re.DOTALL)
MAX_SHORT_STRING = 2 * 512 + 2

STRAY = re.compile(r"[\s}\]]*")
SCALAR = re.compile(r"[-+.\w]*")
SURROGATE = re.compile("[\ud800-\udfff]")

ARGUMENT_KEYS = ("arguments", "parameters")
KNOWN_KEYS = {"name", *ARGUMENT_KEYS, "type", "id"}


class JsonPlace(Enum):
    """Where a piece of an object's or an array's text ends."""

    BETWEEN = r'["{}\[\]]'  # strings; the characters that are of interest there
    STRING = r'\\.|["\\]'
    ESCAPE = r"."  # within a string, behind a backslash

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern, re.DOTALL)

    def behind(self, found: str) -> JsonPlace:
        """Where the text goes on behind what the pattern has found."""
        if self is JsonPlace.ESCAPE:
            return JsonPlace.STRING
        if found == '"':
            return JsonPlace.STRING if self is JsonPlace.BETWEEN else JsonPlace.BETWEEN
        return JsonPlace.ESCAPE if found == "\\" else self

    def step(self, text: str) -> tuple[str, JsonPlace] | None:
        """As Reading says: brackets are read, as the last one ends the value."""
        place, at = self, 0
        while found := place.pattern.search(text, at):
            if place is JsonPlace.BETWEEN and found.group() != '"':
                return None
            at, place = found.end(), place.behind(found.group())
        return text, place


@dataclass(frozen=True)
class ObjectRules:
    """When an object is a call."""

    # Of an object that no marker announces: its keys must be those of a call, and its name is one
    # of these where any are given.
    unannounced: bool = False
    names: frozenset[str] = frozenset()

    def takes_key(self, key: str) -> bool:
        """Whether a call may have this key."""
        return not self.unannounced or key in KNOWN_KEYS

    def takes_name(self, name: str) -> bool:
        """Whether a function may have this name."""
        return is_name(name) and not (self.unannounced and self.names and name not in self.names)


def is_name(name: str) -> bool:
    """Whether a function can have this name: printable, at most 256 characters."""
    return 0 < len(name) <= 256 and name.isprintable() and name.strip() == name


def json_string(text: str) -> str:
    """A JSON string without its quotes. Halves of characters are escaped: UTF-8 has none."""
    return escape_halves(json.dumps(text, ensure_ascii=False)[1:-1])


def escape_halves(text: str) -> str:
    """`text`, with JSON escapes for surrogates."""
    return SURROGATE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def read_short_string(source: Source) -> Steps[str | None]:
    """A string such as a key; None where there is none, or the answer ends within it."""
    while True:
        text, at = source.text, source.at
        found = SHORT_STRING.match(text, at)
        if found:
            try:
                value = json.loads(found.group(), strict=False)
            except ValueError:
                return None
            source.take(found.end())
            return str(value)
        begins = at >= len(text) or text[at] == '"'
        if not begins or len(text) - at >= MAX_SHORT_STRING:
            return None
        if source.final:
            source.take(len(text))
            return None
        yield


def read_value(source: Source, sink: Sink, *, into: Flow | None = None) -> Steps[bool]:
    """Gives `sink` the text of a value as it comes. Whether it is whole: where it isn't, there was
    none or the answer has ended. `into`: where what `sink` is given flows.
    """
    first = yield from source.peek()
    if first == "" or first not in '"{[':
        scalar = yield from source.run(SCALAR, 64)
        if scalar:
            sink(scalar)
        return bool(scalar) and not source.ended
    depth, place = 0, JsonPlace.BETWEEN
    while True:
        text, at = source.text, source.at
        whole = False
        while not whole:
            found = place.pattern.search(text, at)
            if not found:
                at = len(text)
                break
            at, character = found.end(), found.group()
            if place is JsonPlace.BETWEEN and character != '"':
                depth += 1 if character in "{[" else -1
            place = place.behind(character)
            whole = place is JsonPlace.BETWEEN and depth == 0
        if at > source.at:
            sink(source.take(at))
        if whole or source.final:
            return whole
        if into is not None:
            source.flow(into, place)
        yield
        if isinstance(source.flowed, JsonPlace):
            place = source.flowed


def read_arguments(source: Source, sink: Sink, *, into: Flow | None = None) -> Steps[bool]:
    """A call's arguments: an object as it comes, the object within a string, or null for none.
    Whether they are whole. `into`: where what `sink` is given flows.
    """
    first = yield from source.peek()
    if first == "{":
        return (yield from read_value(source, sink, into=into))
    pieces: list[str] = []
    whole = yield from read_value(source, pieces.append)
    raw = "".join(pieces)
    if first == '"':
        sink(_within(raw, whole))
    elif raw != "null":
        sink(raw)
    return whole


def _within(raw: str, whole: bool) -> str:
    """What a string says, of which the end may be missing."""
    for size in range(len(raw), max(0, len(raw) - 12), -1):
        try:
            value = json.loads(raw[:size] if whole else raw[:size] + '"', strict=False)
        except ValueError:
            continue
        return escape_halves(str(value))
    return ""


def read_call(source: Source, out: Output, rules: ObjectRules) -> Steps[bool]:
    """Reads an object that is a call: it has a name, and arguments where it has any. An answer
    that ends behind the name is cut off within a call.

    False where the object turns out to be no call, or doesn't go on as one: what is marked then is
    text. After True the next thing is marked anew.
    """
    call = _Object(source, out, rules)
    whole = yield from call.read()
    if not call.begun:
        cut = source.ended and not whole and not call.refused
        if call.name is None or not (cut or (whole and call.may_lack_arguments)):
            return False
        call.begin()
    if whole:
        out.end_call()
        out.marker()
        source.mark()
    return whole or source.ended


class _Object:
    """An object that may be a call."""

    def __init__(self, source: Source, out: Output, rules: ObjectRules) -> None:
        self.name: str | None = None
        self.begun = False  # whether the call has been told
        self.refused = False  # whether a key was read that a call hasn't
        self._source = source
        self._out = out
        self._rules = rules
        self._early: list[str] | None = None  # arguments that came before the name

    @property
    def may_lack_arguments(self) -> bool:
        return not self._rules.unannounced or bool(self._rules.names)

    def begin(self) -> None:
        """The object is a call for certain."""
        assert self.name is not None
        self.begun = True
        self._source.commit()
        self._out.call(self.name)
        for piece in self._early or ():
            self._out.arguments(piece)

    def read(self) -> Steps[bool]:
        """Reads the object. Whether it is whole, and may be a call."""
        source = self._source
        if not (yield from source.starts("{")):
            return False
        yield from source.space()
        if (yield from source.starts("}")):
            return True
        while True:
            key = yield from read_short_string(source)
            if key is None:
                return False
            if not self._rules.takes_key(key):
                self.refused = True
                return False
            yield from source.space()
            if not (yield from source.starts(":")):
                return False
            yield from source.space()
            if not (yield from self._read_member(key)):
                return False
            yield from source.space()
            if (yield from source.starts("}")):
                return True
            if not (yield from source.starts(",")):
                return False
            yield from source.space()

    def _read_member(self, key: str) -> Steps[bool]:
        source = self._source
        if key == "name" and self.name is None:
            name = yield from read_short_string(source)
            if name is None or not self._rules.takes_name(name):
                return False
            self.name = name
            if self._early is not None:
                self.begin()
            return True
        if key not in ARGUMENT_KEYS or self.begun or self._early is not None:
            return (yield from read_value(source, lambda text: None))
        first = yield from source.peek()
        if first == "" or first not in '{"n':
            return False
        if self.name is None:
            self._early = []
            return (yield from read_arguments(source, self._early.append))
        self.begin()
        return (yield from read_arguments(source, self._out.arguments, into=Flow.ARGUMENTS))


def read_calls(
    source: Source,
    out: Output,
    rules: ObjectRules,
    between: tuple[str, ...] = (),
    closers: tuple[str, ...] = (),
) -> Steps[bool]:
    """Reads an array of calls, or one after the other with one of `between` or nothing between
    them. Brackets too many are dropped before one of `closers`. Returns as `read_call`: whether
    all that is marked belongs to the calls.
    """
    yield from source.space()
    if (yield from source.starts("[")):
        return (yield from _read_array(source, out, rules))
    while True:
        if not (yield from read_call(source, out, rules)):
            return False
        space = yield from source.space()
        separator = (yield from source.starts(*between)) if between else ""
        if separator:
            yield from source.space()
        if not (yield from source.sees("{")):
            if closers:
                space += yield from source.run(STRAY, 64)
                if (yield from source.sees(*closers)):
                    return True
            return not (space or separator)


def _read_array(source: Source, out: Output, rules: ObjectRules) -> Steps[bool]:
    while True:
        yield from source.space()
        if not (yield from read_call(source, out, rules)):
            return False
        yield from source.space()
        if (yield from source.starts("]")):
            source.mark()
            return True
        if not (yield from source.starts(",")):
            return source.ended
