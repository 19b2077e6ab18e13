"""How the engine sees in an answer's tokens whether it thinks: the states of a thought's parser
(parsers/thoughts.py) with what each token moves them to, for a budget that closes thoughts.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from minisgl.sampling_params import ThoughtFormat

if TYPE_CHECKING:
    from minisgl.text.parsers import ReasoningFormat
    from minisgl.tokenizer import Tokenizer

NO_THOUGHT = -1  # there is none, or it has ended
_ANSWER_BEGINS = -1  # in place of a thought's number: there is none yet

# A thought's number or _ANSWER_BEGINS, and the latest text, which may begin a marker.
_State = tuple[int, bytes]


class ThoughtTable:
    """The thoughts that an answer may have behind a prompt which ends so: one, at its beginning.
    Where the prompt begins it, a thought of another kind within it isn't looked for.
    """

    def __init__(self, format: ReasoningFormat, prompt_end: str) -> None:
        inside = format.begins_inside(prompt_end)
        begins = {} if inside else format.ends
        ends = {begin: format.ends_like(end) for begin, end in begins.items()}
        thoughts = [format.ends_like(inside)] if inside else list(dict.fromkeys(ends.values()))
        # What closes each of the thoughts.
        assert format.closing is not None
        self.closings = [format.closing.format(end=one[0]) for one in thoughts]
        self.key = (tuple(format.ends.items()), inside)
        self._shown = format.markers
        self._begins = {begin.encode(): thoughts.index(end) for begin, end in ends.items()}
        self._ends = [[end.encode() for end in one] for one in thoughts]
        self._patterns = [_ends_pattern(one) for one in self._ends]

    def make(self, tokenizer: Tokenizer, closings: Sequence[list[int]]) -> ThoughtFormat:
        """For the engine, with the tokens of `closings`. Takes a moment."""
        tokens = self._texts(tokenizer)
        sorted_tokens = sorted(tokens)
        first: list[_State] = [(_ANSWER_BEGINS, b"")] if self._begins else []
        first += [(thought, b"") for thought in range(len(self._ends))]
        numbers = {state: number for number, state in enumerate(first)}
        states, moves = list(first), []
        candidates = {state: self._candidates(state, sorted_tokens) for state in first}
        for state in states:
            thought = state[0]
            inside = thought != _ANSWER_BEGINS
            base = (thought, b"")
            for token in candidates[base] if inside else self._candidates(state, sorted_tokens):
                following = self._advance(state, token)
                usual = base if inside else None
                if inside and state != base:
                    usual = self._advance(base, token)
                if following == usual:
                    continue
                if following is not None and following not in numbers:
                    numbers[following] = len(states)
                    states.append(following)
                number = NO_THOUGHT if following is None else numbers[following]
                moves += [(numbers[state], token_id, number) for token_id in tokens[token]]
        return ThoughtFormat(
            thoughts=[thought for thought, _ in states],
            moves=array("i", [value for move in sorted(moves) for value in move]).tobytes(),
            closings=list(closings),
        )

    def _texts(self, tokenizer: Tokenizer) -> dict[bytes, list[int]]:
        """The ids of the tokens by what the parser sees of them."""
        texts: dict[bytes, list[int]] = {}
        for token_id, text in enumerate(tokenizer.grammar_tokens()):
            added = tokenizer.added_tokens.get(token_id)
            if added is not None:
                hidden = token_id in tokenizer.special_token_ids and added not in self._shown
                text = b"" if hidden else added.encode()
            texts.setdefault(text, []).append(token_id)
        return texts

    def _candidates(self, state: _State, tokens: list[bytes]) -> list[bytes]:
        """Tokens, of the sorted ones, that may move a state anywhere but to where most do."""
        thought, begun = state
        found = set(tokens[:1]) & {b""}  # which leaves all as it is
        if thought >= 0:
            found.update(filter(self._patterns[thought].search, tokens))
            rests = [end[at:] for end in self._ends[thought] for at in range(1, len(end))]
        else:
            if not begun:
                found.update(token for token in tokens if token[:1].isspace())
            rests = [one[len(begun) :] for one in self._begins if one.startswith(begun)]
        for rest in rests:
            found.update(_related(rest, tokens))
        return sorted(found)

    def _advance(self, state: _State, token: bytes) -> _State | None:
        """Where a token's text leads; None where there is no thought behind it."""
        thought, begun = state
        text = begun + token
        if thought < 0:
            if not begun:
                text = text.lstrip()
            for begin, begins in self._begins.items():
                if text.startswith(begin):
                    return self._advance((begins, b""), text[len(begin) :])
            is_begun = not text or any(begin.startswith(text) for begin in self._begins)
            return (thought, text) if is_begun else None
        found = self._patterns[thought].search(text)
        if found is None:
            return (thought, b"")
        return None if found.group() in self._ends[thought] else (thought, found.group())


def _ends_pattern(ends: Sequence[bytes]) -> re.Pattern[bytes]:
    """Finds one of the ends, else what a text ends with that may begin one: as much as possible."""
    begun = {end[:size] for end in ends for size in range(1, len(end))}
    cut = (re.escape(one) + rb"\Z" for one in sorted(begun, key=len, reverse=True))
    return re.compile(b"|".join((*map(re.escape, ends), *cut)), re.DOTALL)


def _related(text: bytes, tokens: Sequence[bytes]) -> Iterable[bytes]:
    """Of sorted tokens those that `text` begins with, and those that begin with it."""
    for size in range(1, len(text)):
        at = bisect_left(tokens, text[:size])
        if tokens[at : at + 1] == [text[:size]]:
            yield tokens[at]
    at = bisect_left(tokens, text)
    yield from takewhile(lambda token: token.startswith(text), tokens[at:])
