"""Finds the first of several stop strings in text that arrives piece by piece."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Knuth-Morris-Pratt over all stop strings at once, a character at a time.

    So the result doesn't depend on how the text was cut, and a character costs O(number of stop
    strings) amortised, whatever a client sends. The match that completes first wins; of several
    that complete together, the longest.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = list(stop)
        self._fallbacks = [_fallbacks(text) for text in self._stop]
        self._matched = [0] * len(
            self._stop
        )  # characters of each stop string that the text ends with
        self._first = frozenset(text[0] for text in self._stop)
        self._held = ""
        self.match: str | None = None

    def push(self, text: str) -> str:
        """Text that stands before any stop string for certain; with a `match`, all before it."""
        if not self._held and self._first.isdisjoint(text):
            return text
        held = self._held + text
        for index in range(len(self._held), len(held)):
            matched = self._advance(held[index])
            if matched:
                self.match, self._held = matched, ""
                return held[: index + 1 - len(matched)]
        keep = len(held) - max(self._matched)
        self._held = held[keep:]
        return held[:keep]

    def finish(self) -> str:
        """What was held because it might have begun a stop string."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        completed: str | None = None
        for index, text in enumerate(self._stop):
            matched = self._matched[index]
            fallbacks = self._fallbacks[index]
            while matched and text[matched] != character:
                matched = fallbacks[matched - 1]
            if text[matched] == character:
                matched += 1
            self._matched[index] = matched
            if matched == len(text) and (completed is None or len(text) > len(completed)):
                completed = text
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
