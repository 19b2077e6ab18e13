"""Parts of an answer: what of its text is content, a thought, or a call of a tool."""

from __future__ import annotations

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
