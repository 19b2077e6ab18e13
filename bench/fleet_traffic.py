"""What a simulated fleet is asked: conversations that begin with one of many common prefixes.

Prefixes of PREFIX tokens are drawn by Zipf's law with exponent 1. Three kinds of clients: chats (a
person reads and answers), agents (a program answers at once, with much) and batch (one question
each). All is drawn from a seed before the simulation, so that every router gets the same.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

PREFIX = 2048  # tokens
MAX_ID = 128_000
_TEXT = 2**20  # tokens that all texts are cut out of


@dataclass(frozen=True)
class Kind:
    """Bounds, from which each is drawn evenly."""

    turns: tuple[int, int]
    question: tuple[int, int]  # tokens that a turn adds to the conversation
    answer: tuple[int, int]  # tokens
    pause: tuple[float, float]  # seconds between an answer's end and the next turn


KINDS = {
    "chat": Kind((1, 8), (30, 300), (50, 350), (2.0, 10.0)),
    "agent": Kind((4, 16), (100, 1200), (20, 150), (0.1, 1.0)),
    "batch": Kind((1, 1), (100, 800), (20, 200), (0.0, 0.0)),
}
MIXED = {"chat": 0.4, "agent": 0.1, "batch": 0.5}  # shares of the conversations
CHATS = {"chat": 1.0}


@dataclass(slots=True)
class Turn:
    question: int  # tokens
    answer: int  # tokens
    pause: float  # seconds before it


@dataclass(slots=True)
class Conversation:
    """A client's conversation, which grows."""

    id: int
    kind: str
    prefix: int
    turns: list[Turn]
    text_at: int  # where its own text begins
    tokens: list[int] = field(default_factory=list)  # asked and answered so far
    next_turn: int = 0

    def prompt_tokens(self) -> Iterator[tuple[int, int]]:
        """Prompt and answer tokens of each turn."""
        length = PREFIX
        for turn in self.turns:
            length += turn.question
            yield length, turn.answer
            length += turn.answer


class Traffic:
    """Texts, and conversations drawn from `seed`."""

    def __init__(self, seed: int, num_prefixes: int, mix: dict[str, float]) -> None:
        self._rng = random.Random(seed)
        self._mix = mix
        self._num_prefixes = num_prefixes
        self._weights = list(itertools.accumulate(1 / rank for rank in range(1, num_prefixes + 1)))
        self._text = [self._rng.randrange(MAX_ID) for _ in range(_TEXT)]
        self._prefix_at = [self._rng.randrange(_TEXT - PREFIX) for _ in range(num_prefixes)]

    def prefix(self) -> int:
        """One of the prefixes, by Zipf's law."""
        return bisect.bisect(self._weights, self._rng.random() * self._weights[-1])

    def prefix_tokens(self, prefix: int) -> list[int]:
        """The number first, so that no two are the same."""
        at = self._prefix_at[prefix]
        return [MAX_ID + prefix, *self._text[at + 1 : at + PREFIX]]

    def conversation(self, id: int) -> Conversation:
        rng = self._rng
        name = rng.choices(list(self._mix), list(self._mix.values()))[0]
        kind = KINDS[name]
        turns = [
            Turn(rng.randint(*kind.question), rng.randint(*kind.answer), rng.uniform(*kind.pause))
            for _ in range(rng.randint(*kind.turns))
        ]
        text_at = rng.randrange(_TEXT - 2**17)
        return Conversation(id, name, self.prefix(), turns, text_at)

    def pause(self, mean: float) -> float:
        """Seconds until the next conversation begins, where they come by chance."""
        return self._rng.expovariate(1 / mean)

    def say(self, conversation: Conversation, count: int) -> Sequence[int]:
        """The conversation goes on by so many tokens. Returns all of it."""
        if not conversation.tokens:
            conversation.tokens = self.prefix_tokens(conversation.prefix)
        begin = conversation.text_at
        conversation.tokens += self._text[begin : begin + count]
        conversation.text_at += count
        return conversation.tokens
