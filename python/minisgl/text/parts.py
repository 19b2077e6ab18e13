"""Parts of an answer: what of its text is content, a thought, or a call of a tool."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec


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


class AnswerParser(Protocol):
    """Takes one answer's text apart as it comes. However a text is cut into pushes, the parts say
    the same: neighbours of one kind and one call, put together, are equal.
    """

    @property
    def thinking(self) -> bool:
        """Whether what has been pushed so far ends within a thought."""
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
