"""PartsReader: an answer's text to its parts, and how many of its tokens were thoughts."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

import msgspec

from minisgl.text.parts import AnswerParser, ArgumentsPart, CallPart, Part, Passage, Thought

if TYPE_CHECKING:
    from minisgl.tokenizer.whole_texts import Reading


class PartsReader:
    """Reads one choice's pieces in their order.

    A token belongs to a thought if a part of its text does, or its place where it has no text of
    its own: the thought's marks count, too.
    """

    def __init__(
        self, parser: AnswerParser, *, parallel: bool = True, locates: bool = False
    ) -> None:
        """`parallel`: a second call may follow the first one; else the answer ends there.
        `locates`: `part_ends` is asked for, and all tokens' lengths are given.
        """
        self.num_calls = 0
        self.ended = False  # before a second call that mustn't be made
        # How many characters of the answer had been read when each of the last parts was certain to
        # its end.
        self.part_ends: list[int] = []
        self._parser = parser
        self.parallel = parallel
        self._locates = locates
        self._position = 0  # characters read, where parts are located
        self._num_read = 0  # tokens whose text has been read to its end, likewise
        self._ends = array("q")  # characters up to the end of each token's text
        self._num_closed = 0  # tokens of the thoughts that have ended
        self._thoughts_closed = 0
        self._first = 0  # the token behind these thoughts

    @property
    def num_reasoning(self) -> int:
        """Tokens of thoughts, of those whose text's lengths were given, as far as is certain."""
        count = self._num_closed
        for thought in self._parser.thoughts[self._thoughts_closed :]:
            begin, end = self._tokens_of(thought)
            count += end - begin
        return count

    @property
    def passage(self) -> Passage | None:
        """As AnswerParser's."""
        return None if self._locates else self._parser.passage

    def pass_on(self, lengths: Sequence[int], reading: Reading) -> None:
        """The passage took tokens of so many characters each, up to there."""
        self._add_tokens(lengths)
        self._parser.pass_on(sum(lengths), reading)

    def read(self, text: str, lengths: Sequence[int] | None, *, final: bool = False) -> list[Part]:
        """The parts of the answer's next piece of text, which holds no parts of one kind side by
        side. `lengths`: characters of each new token, also of those that aren't shown yet; None:
        thoughts' tokens aren't counted.
        """
        if lengths is not None:
            self._add_tokens(lengths)
        if self._locates:
            parts = self._read_tokens(text, final)
        else:
            parts = self._parser.push(text, final=final)
        self._close_thoughts()
        if not parts:
            return parts
        if len(parts) > 1:
            self.part_ends = _joined_ends(parts, self.part_ends)
            parts = joined(parts)
        parts = self._count_calls(parts)
        del self.part_ends[len(parts) :]
        return parts

    def _add_tokens(self, lengths: Sequence[int]) -> None:
        ends = accumulate(lengths, initial=self._ends[-1] if self._ends else 0)
        next(ends)  # where they begin
        self._ends.extend(ends)

    def _read_tokens(self, text: str, final: bool) -> list[Part]:
        parts: list[Part] = []
        self.part_ends = ends = []
        begin, first = 0, self._position
        self._position += len(text)
        while self._num_read < len(self._ends) and self._ends[self._num_read] <= self._position:
            end = self._ends[self._num_read] - first
            self._num_read += 1
            if end > begin:
                pushed = self._parser.push(text[begin:end])
                parts += pushed
                ends += [first + end] * len(pushed)
                begin = end
        if begin < len(text) or final:
            pushed = self._parser.push(text[begin:], final=final)
            parts += pushed
            ends += [self._position] * len(pushed)
        return parts

    def _tokens_of(self, thought: Thought) -> tuple[int, int]:
        """The tokens of a thought that none before it has: the first, and the one behind them."""
        ends = self._ends
        first = max(self._first, bisect_right(ends, thought.begin))
        behind = len(ends)
        if thought.end is not None:
            behind = min(behind, bisect_left(ends, thought.end) + 1)
        return first, max(first, behind)

    def _close_thoughts(self) -> None:
        thoughts = self._parser.thoughts
        while self._thoughts_closed < len(thoughts):
            thought = thoughts[self._thoughts_closed]
            if thought.end is None:
                return
            begin, self._first = self._tokens_of(thought)
            self._num_closed += self._first - begin
            self._thoughts_closed += 1

    def _count_calls(self, parts: list[Part]) -> list[Part]:
        for position, part in enumerate(parts):
            if isinstance(part, CallPart):
                if self.num_calls and not self.parallel:
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
