"""Parts of an answer: what of its text is content, a thought, or a call of a tool."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from minisgl.tokenizer.whole_texts import Reading


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """Content."""

    text: str


class ReasoningPart(msgspec.Struct, frozen=True, tag="reasoning"):
    """Words of a thought."""

    text: str


class CallPart(msgspec.Struct, frozen=True, tag="call"):
    """A call begins: the answer's call `index`, counted from 0."""

    index: int
    id: str
    name: str


class ArgumentsPart(msgspec.Struct, frozen=True, tag="arguments"):
    """A piece of the JSON text of a call's arguments. All of a call's pieces follow its CallPart,
    and come before the next one.
    """

    index: int
    text: str


Part = TextPart | ReasoningPart | CallPart | ArgumentsPart


class Thought(msgspec.Struct):
    """Where a thought stands in an answer's text, its marks included: characters from the answer's
    beginning.
    """

    begin: int  # -1 where the prompt begins it
    end: int | None = None  # None: it goes on


class Passage(msgspec.Struct, frozen=True):
    """Text that says what it is without being read: what is shown at a piece is all of one kind if
    `reading` has a step() for it, and then the next one may be.
    """

    like: TextPart | ReasoningPart | ArgumentsPart  # without text
    reading: Reading


class AnswerParser(Protocol):
    """Takes one answer's text apart as it comes. However a text is cut into pushes, the parts say
    the same: neighbours of one kind and one call, put together, are equal.
    """

    @property
    def thoughts(self) -> Sequence[Thought]:
        """The thoughts in what has been pushed so far, in order: only the last one may go on."""
        ...

    @property
    def passage(self) -> Passage | None:
        """What can be told of text to come that isn't the last, without pushing it. It holds until
        the next push(). None: all has to be pushed.
        """
        ...

    def pass_on(self, num_characters: int, reading: Reading) -> None:
        """So many characters of the answer weren't pushed: the passage took them, up to there."""
        ...

    def push(self, text: str, *, final: bool = False) -> list[Part]:
        """What is certain now; with `final` the rest, and then nothing more may come. It raises
        nothing, whatever a model writes.
        """
        ...


@dataclass(slots=True)
class Call:
    """A whole call."""

    id: str
    name: str
    arguments: str  # JSON


@dataclass(slots=True)
class Said:
    """A whole answer."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)


def sort_parts(parts: Iterable[Part]) -> Said:
    """What the parts of an answer come to."""
    content: list[str] = []
    reasoning: list[str] = []
    begun: list[CallPart] = []
    arguments: dict[int, list[str]] = {}
    for part in parts:
        if isinstance(part, TextPart):
            content.append(part.text)
        elif isinstance(part, ReasoningPart):
            reasoning.append(part.text)
        elif isinstance(part, CallPart):
            begun.append(part)
        else:
            arguments.setdefault(part.index, []).append(part.text)
    calls = [Call(one.id, one.name, "".join(arguments.get(one.index, ()))) for one in begun]
    return Said("".join(content), "".join(reasoning), calls)
