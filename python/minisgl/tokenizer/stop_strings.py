"""Finds the first of several stop strings in text that arrives piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import compress

from minisgl.tokenizer.whole_texts import json_text


class StopStrings:
    """The stop strings of a request, made ready for any number of StopMatchers. Immutable.

    `hidden` are the texts of tokens that an answer doesn't show, such as special tokens. A stop
    string that contains one is looked for in the text with such tokens, any other in the text that
    is shown.
    """

    def __init__(self, stop: Sequence[str], hidden: Iterable[str] = ()) -> None:
        self.texts = tuple(stop)
        self.fallbacks = [_fallbacks(text) for text in self.texts]
        self.first = frozenset(text[0] for text in self.texts)
        joined = "\n".join(self.texts)
        present = [text for text in hidden if text and text in joined]
        # One per stop string: whether it is looked for in the text with hidden tokens.
        self.sees = [any(text in one for text in present) for one in self.texts]
        # Characters of the longest that is; 0 where there is none.
        self.longest_seeing = max(map(len, compress(self.texts, self.sees)), default=0)

    @cached_property
    def first_json(self) -> tuple[bytes, ...]:
        """The first characters as they stand within a JSON string: where none of these is, none of
        those is.
        """
        return tuple(map(json_text, self.first))


class StopMatcher:
    """Knuth-Morris-Pratt over all stop strings at once, a character at a time.

    So the result doesn't depend on how the text was cut, and a character costs O(number of stop
    strings) amortised, whatever a client sends. The match that completes first wins; of several
    that complete together, the longest.
    """

    def __init__(self, stop: StopStrings) -> None:
        self.stop = stop
        # Characters of each stop string that the text in which it is looked for ends with.
        self._matched = [0] * len(stop.texts)
        self._begun = False  # whether that is anything
        self._held = ""  # shown text that may begin a stop string
        # 1 for each of the last characters that is shown, 0 for each hidden one; as many as the
        # longest stop string with a hidden token has.
        self._marks = bytearray()
        self.match: str | None = None

    @property
    def begun(self) -> bool:
        """Whether the text so far may end within a stop string."""
        return self._begun

    def push(self, text: str, shown: bool = True) -> str:
        """Text that stands before any stop string for certain; with a `match`, all before it.

        Without `shown`, `text` is that of a hidden token: only earlier text may come back.
        """
        stop = self.stop
        if not self._begun and stop.first.isdisjoint(text):
            return text if shown else ""
        held = self._held
        for index, character in enumerate(text):
            completed = self._advance(character, shown)
            if completed >= 0:
                if shown:
                    held += text[: index + 1]
                self.match, self._held = stop.texts[completed], ""
                return held[: len(held) - self._num_shown(completed)]
        if shown:
            held += text
        num_held = max(self._matched)
        self._begun = num_held > 0
        if num_held and stop.longest_seeing:
            num_held = max(map(self._num_shown, range(len(self._matched))))
            del self._marks[: -stop.longest_seeing]
        keep = len(held) - num_held
        self._held = held[keep:]
        return held[:keep]

    def finish(self) -> str:
        """What was held because it might have begun a stop string."""
        held, self._held = self._held, ""
        return held

    def _num_shown(self, index: int) -> int:
        """How many of the characters that a stop string has matched are shown."""
        matched = self._matched[index]
        return self._marks.count(1, -matched) if matched and self.stop.sees[index] else matched

    def _advance(self, character: str, shown: bool) -> int:
        """Takes one more character. The index of the stop string that it completes, or -1."""
        stop = self.stop
        if stop.longest_seeing:
            self._marks.append(shown)
        completed = -1
        for index, text in enumerate(stop.texts):
            if not shown and not stop.sees[index]:
                continue
            matched = self._matched[index]
            fallbacks = stop.fallbacks[index]
            while matched and text[matched] != character:
                matched = fallbacks[matched - 1]
            if text[matched] == character:
                matched += 1
            self._matched[index] = matched
            if matched == len(text) and (completed < 0 or len(text) > len(stop.texts[completed])):
                completed = index
        return completed


def _fallbacks(text: str) -> list[int]:
    """For each prefix of `text`, the length of its longest proper prefix that is its suffix too."""
    fallbacks = [0] * len(text)
    length = 0
    for index in range(1, len(text)):
        while length and text[index] != text[length]:
            length = fallbacks[length - 1]
        if text[index] == text[length]:
            length += 1
        fallbacks[index] = length
    return fallbacks
