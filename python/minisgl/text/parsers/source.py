"""Source: an answer's text as it arrives, read by generators that pause where more is needed.

A reader yields whenever what it sees could still go two ways, and never otherwise decides by where
the text was cut. So it reads the same whatever the pieces were.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from minisgl.tokenizer.whole_texts import Reading

Result = TypeVar("Result")
Steps = Generator[None, None, Result]
Sink = Callable[[str], None]

SPACE = re.compile(r"\s*")
USUAL_SPACE = re.compile(r"\n{0,2}(?: {0,16}|\t{0,4})")

# Characters of one answer that may be read twice because they looked like a call and weren't.
# What goes beyond is text without a second look, so an answer costs linear time.
MAX_REREAD = 1 << 16


class Flow(Enum):
    """Where text may flow without being read, as long as nothing else begins."""

    TEXT = auto()  # the answer's text or a thought
    ARGUMENTS = auto()  # a call's arguments, as they stand there


@dataclass(frozen=True)
class MarkerReading:
    """A Reading of text up to a marker. White space before one isn't shown, so it is held until
    something else comes, or with None as `held` it is like all other text.
    """

    first: frozenset[str]  # characters of the markers
    held: str | None

    def step(self, text: str) -> tuple[str, MarkerReading] | None:
        """As Reading says."""
        if not self.first.isdisjoint(text):
            return None
        if self.held is None:
            return text, self
        text = self.held + text
        shown = text.rstrip()
        following = self.holding(text[len(shown) :])
        return None if following is None else (shown, following)

    def holding(self, space: str) -> MarkerReading | None:
        """The one that holds some white space; None for what is rare: there are few readings."""
        if space == self.held:
            return self
        return MarkerReading(self.first, space) if USUAL_SPACE.fullmatch(space) else None


class Markers:
    """Texts to look for. None contains another: so whichever is whole first also begins first."""

    def __init__(self, texts: Sequence[str]) -> None:
        if any(one is not other and one in other for one in texts for other in texts):
            raise ValueError(f"a marker contains another: {texts}")
        self.texts = tuple(texts)
        self.pattern = re.compile("|".join(map(re.escape, texts)) or r"(?!)")
        self.first = frozenset(text[0] for text in texts)
        self.longest = max(map(len, texts), default=0)
        self.readings = {
            Flow.TEXT: MarkerReading(self.first, ""),
            Flow.ARGUMENTS: MarkerReading(self.first, None),
        }

    def partial(self, text: str, start: int) -> int:
        """Where the end of `text`, which has no whole marker, may be a marker's beginning; its
        length where it can't. `start` is where the text begins.
        """
        low = max(start, len(text) - self.longest + 1)
        tail = text[low:]
        if self.first.isdisjoint(tail):
            return len(text)
        for index, character in enumerate(tail):
            if character in self.first and any(one.startswith(tail[index:]) for one in self.texts):
                return low + index
        return len(text)


NOTHING = Markers(())


class Source:
    """The text that has arrived and hasn't been read: `text` from `at` on."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self._before = 0  # characters of the answer that stood before `text`
        self.final = False  # nothing more comes
        # Where nothing is held and what comes next flows somewhere.
        self.flowing: tuple[Flow, Reading] | None = None
        self.flowed: Reading | None = None  # how far it has, once something else has come
        self._taken: list[str] | None = None  # since the mark
        self._spans = False  # whether text has arrived since the mark
        self._reread = 0

    def add(self, text: str, final: bool) -> None:
        """Text that has arrived."""
        self._before += self.at
        self.text = self.text[self.at :] + text if self.at < len(self.text) else text
        self.at = 0
        self.final = final
        self.flowed = None if self.flowing is None else self.flowing[1]
        self.flowing = None
        self._spans = True

    @property
    def position(self) -> int:
        """How many characters of the answer have been read."""
        return self._before + self.at

    @property
    def ended(self) -> bool:
        """Whether all text has been read."""
        return self.final and self.at >= len(self.text)

    def take(self, end: int) -> str:
        """The text up to the index `end`, which is then read."""
        piece = self.text[self.at : end]
        self.at = end
        if self._taken is not None and piece:
            self._taken.append(piece)
        return piece

    def mark(self, opener: str = "") -> None:
        """From here on, text may have to be taken back. `opener` was read before and begins it."""
        self._taken = [opener] if opener else []
        self._spans = False

    def commit(self) -> None:
        """What has been read since the mark belongs to a call."""
        self._taken = None

    def retry(self, sink: Sink) -> None:
        """What has been read since the mark is no call: its first piece is text for certain, the
        rest is read again.
        """
        taken, self._taken = self._taken or [], None
        if not taken:
            return
        first, rest = taken[0], "".join(taken[1:])
        sink(first)
        self._reread += len(first) + len(rest)
        if self._reread > MAX_REREAD:
            if rest:
                sink(rest)
        elif self._spans:
            self._before += self.at - len(rest)
            self.text = rest + self.text[self.at :]
            self.at = 0
        else:
            self.at -= len(rest)

    def flow(self, into: Flow, reading: Reading) -> None:
        """What comes next flows, as far as the reading goes, unless it may have to be taken back.
        All that there is has been read.
        """
        if self._taken is None:
            self.flowing = into, reading

    def pass_on(self, num_characters: int, reading: Reading) -> None:
        """So many characters have flowed, up to there."""
        assert self.flowing is not None
        self.flowing = self.flowing[0], reading
        self._before += num_characters

    def until(self, markers: Markers, sink: Sink, *, into: Flow | None = None) -> Steps[str | None]:
        """Gives `sink` the text up to the first marker, and reads the marker; None at the end of
        the answer. `into`: where what `sink` is given flows.
        """
        while True:
            found = markers.pattern.search(self.text, self.at)
            if found:
                if found.start() > self.at:
                    sink(self.take(found.start()))
                return self.take(found.end())
            size = len(self.text)
            end = size if self.final else markers.partial(self.text, self.at)
            if end > self.at:
                sink(self.take(end))
            if self.final:
                return None
            if into is not None and end == size:
                self.flow(into, markers.readings[into])
            yield

    def peek(self) -> Steps[str]:
        """The next character, "" at the end of the answer."""
        while self.at >= len(self.text):
            if self.final:
                return ""
            yield
        return self.text[self.at]

    def sees(self, *options: str) -> Steps[str]:
        """The option with which what comes next begins, "" where it is none. No option begins
        with another.
        """
        longest = max(map(len, options))
        while True:
            ahead = self.text[self.at : self.at + longest]
            for option in options:
                if ahead.startswith(option):
                    return option
            if self.final or not any(option.startswith(ahead) for option in options):
                return ""
            yield

    def starts(self, *options: str) -> Steps[str]:
        """As `sees`, and the option is read."""
        option = yield from self.sees(*options)
        if option:
            self.take(self.at + len(option))
        return option

    def space(self) -> Steps[str]:
        """Reads white space; the text of it."""
        pieces = []
        while True:
            found = SPACE.match(self.text, self.at)
            assert found is not None  # it matches nothing too
            if found.end() > self.at:
                pieces.append(self.take(found.end()))
            if self.at < len(self.text) or self.final:
                return "".join(pieces)
            yield

    def run(self, pattern: re.Pattern[str], limit: int) -> Steps[str]:
        """Reads characters as long as each matches `pattern` (of the form `[...]*`), at most
        `limit` of them.
        """
        pieces, size = [], 0
        while True:
            found = pattern.match(self.text, self.at, self.at + limit - size)
            assert found is not None
            if found.end() > self.at:
                size += found.end() - self.at
                pieces.append(self.take(found.end()))
            if self.at < len(self.text) or self.final or size >= limit:
                return "".join(pieces)
            yield
