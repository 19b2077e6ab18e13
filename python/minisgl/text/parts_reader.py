"""PartsReader: an answer's text to its parts, and how many of its tokens were thoughts."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import groupby

import msgspec

from minisgl.text.parts import AnswerParser, ArgumentsPart, CallPart, Part


class PartsReader:
    """Reads one choice's pieces in their order.

    A token belongs to a thought if what the parser had read was within one at any time from the
    token's beginning to its end: the thought's marks count, too.
    """

    def __init__(self, parser: AnswerParser, *, parallel: bool = True) -> None:
        """`parallel`: a second call may follow the first one; else the answer ends there."""
        self.num_calls = 0
        self.num_reasoning = 0  # tokens, of those whose text's lengths were given
        self.ended = False  # before a second call that mustn't be made
        # How many characters of the answer had been read when each of the last parts was certain to
        # its end, where tokens' lengths were given.
        self.part_ends: list[int] = []
        self._parser = parser
        self._parallel = parallel
        self._position = 0  # characters read
        self._end = 0  # of the last token's text
        self._ends: deque[int] = deque()  # of tokens whose text hasn't been read to its end
        self._thought = parser.thinking  # at some time since the first of these began

    def read(self, text: str, lengths: Sequence[int] | None, *, final: bool = False) -> list[Part]:
        """The parts of the answer's next piece of text, which holds no parts of one kind side by
        side. `lengths`: characters of each new token, also of those that aren't shown yet; None:
        thoughts' tokens aren't counted.
        """
        if lengths is None:
            parts = self._parser.push(text, final=final)
        else:
            parts = self._read_tokens(text, lengths, final)
        if len(parts) > 1:
            self.part_ends = _joined_ends(parts, self.part_ends)
            parts = joined(parts)
        parts = self._count_calls(parts)
        del self.part_ends[len(parts) :]
        return parts

    def _read_tokens(self, text: str, lengths: Sequence[int], final: bool) -> list[Part]:
        for length in lengths:
            self._end += length
            self._ends.append(self._end)
        parts: list[Part] = []
        self.part_ends = ends = []
        begin, first = 0, self._position
        self._position += len(text)
        while self._ends and self._ends[0] <= self._position:
            end = self._ends.popleft() - first
            if end > begin:
                pushed = self._push(text[begin:end])
                parts += pushed
                ends += [first + end] * len(pushed)
                begin = end
            self._count()
        if begin < len(text) or final:
            pushed = self._push(text[begin:], final)
            parts += pushed
            ends += [self._position] * len(pushed)
        while final and self._ends:  # their text was cut off
            self._ends.popleft()
            self._count()
        return parts

    def _push(self, text: str, final: bool = False) -> list[Part]:
        parts = self._parser.push(text, final=final)
        self._thought |= self._parser.thinking
        return parts

    def _count(self) -> None:
        """A token has been read."""
        self.num_reasoning += self._thought
        self._thought = self._parser.thinking

    def _count_calls(self, parts: list[Part]) -> list[Part]:
        for position, part in enumerate(parts):
            if isinstance(part, CallPart):
                if self.num_calls and not self._parallel:
                    self.ended = True
                    return parts[:position]
                self.num_calls += 1
        return parts


def joined(parts: Sequence[Part]) -> list[Part]:
    """Parts with neighbours of one kind, and of one call, put together."""
    made: list[Part] = []
    for (kind, _), neighbours in groupby(parts, key=_kind):
        first, *others = neighbours
        if kind is not CallPart and others:
            texts = [part.text for part in (first, *others) if not isinstance(part, CallPart)]
            made.append(msgspec.structs.replace(first, text="".join(texts)))
        else:
            made += [first, *others]
    return made


def _joined_ends(parts: Sequence[Part], ends: Sequence[int]) -> list[int]:
    """The ends of parts once they are joined, of each the last piece's."""
    last = len(parts) - 1
    return [
        end
        for index, end in enumerate(ends)
        if index == last
        or isinstance(parts[index], CallPart)
        or _kind(parts[index]) != _kind(parts[index + 1])
    ]


def _kind(part: Part) -> tuple[type[Part], int]:
    return type(part), part.index if isinstance(part, ArgumentsPart) else 0
