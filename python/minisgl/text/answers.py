"""Answers that clients send back. The next request of a conversation has the text of the answers
before, and a tokenizer may cut it into other tokens than those that were generated: what the engine
has computed for them, and for all that follows, would be computed again. AnswerMemory keeps the
token ids of answers; find_runs() tells where a prompt has an answer's text again, and
join_runs() uses the ids there.

What the model reads is the prompt's text in any case, token by token the tokenizer's or what was
generated at the same place of a conversation: where that was no UTF-8, its own bytes in place of
the U+FFFD that the client was shown. Whatever can't be shown to be so is the tokenizer's.
"""

from __future__ import annotations

import codecs
import re
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from minisgl.tokenizer import Tokenizer

MAX_TEXTS = 65536  # that are remembered
MAX_SAME = 16  # answers of one text, as many conversations have "Yes."
TURN_CHARS = 64  # of a prompt, by which the beginning of an answer is known again
NUM_OVERHEAD_BYTES = 400  # of an answer that is remembered, beside its ids

_THOUGHT_END = "</think>"
_OPENED_THOUGHT = re.compile(r"<think>\s*(?:</think>\s*)?\Z")
_SPACE = b" \t\r\n"

# Whose answers they are: the number of the API key, and the request's cache_salt. Nobody learns
# from a prompt's number of tokens what somebody else was answered.
Owner = tuple[int | None, str | None]


class Turn(NamedTuple):
    """A place in a prompt's text where an answer may begin."""

    position: int  # characters before it
    before: str  # the last of these


def turns_of(prompt: str) -> tuple[Turn, ...]:
    """Where the answer to a prompt begins: at its end and, where the template has opened a thought
    there, before that: the prompts that follow don't have it.
    """
    ends = [len(prompt)]
    if opened := _OPENED_THOUGHT.search(prompt, max(0, len(prompt) - TURN_CHARS)):
        ends.append(opened.start())
    return tuple(Turn(end, prompt[max(0, end - TURN_CHARS) : end]) for end in ends)


def last_words(text: str) -> str:
    """What of an answer's text every template and client leaves as it is: without the thought
    before it, and without the spaces around it.
    """
    return text.rpartition(_THOUGHT_END)[2].strip()


@dataclass(frozen=True, slots=True)
class RememberedAnswer:
    """An answer's token ids, and where it stood."""

    turns: tuple[Turn, ...]
    token_ids: array[int]

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, about."""
        return NUM_OVERHEAD_BYTES + self.token_ids.itemsize * len(self.token_ids)


class AnswerMemory:
    """Recent answers, by their last words. Those that were used longest ago are forgotten."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: memory that they take at most, about."""
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._texts: OrderedDict[bytes, list[RememberedAnswer]] = OrderedDict()

    def remember(
        self, owner: Owner, turns: tuple[Turn, ...], token_ids: Sequence[int], text: str
    ) -> None:
        """Keeps an answer. `text` is what the client was shown of it, `turns` is turns_of() its
        prompt.
        """
        words = last_words(text)
        answer = RememberedAnswer(turns, array("i", token_ids))
        if not words or not turns or answer.num_bytes > self._max_bytes:
            return
        key = _key(owner, words)
        same = self._texts.pop(key, [])
        self.num_bytes -= _total(same)
        same = [*(one for one in same if one.turns != turns), answer][-MAX_SAME:]
        self._texts[key] = same
        self.num_bytes += _total(same)
        while self.num_bytes > self._max_bytes or len(self._texts) > MAX_TEXTS:
            _, forgotten = self._texts.popitem(last=False)
            self.num_bytes -= _total(forgotten)

    def find(self, owner: Owner, messages: Iterable[dict[str, Any]]) -> list[Candidates]:
        """What is known of a conversation's answers."""
        found: dict[bytes, Candidates] = {}
        for message in messages:
            content = message.get("content")
            if message.get("role") != "assistant" or not isinstance(content, str):
                continue
            words = last_words(content)
            key = _key(owner, words)
            if (answers := self._texts.get(key)) is not None:
                self._texts.move_to_end(key)
                found[key] = Candidates(words, answers)
        return list(found.values())


class Candidates(NamedTuple):
    """Answers that a message may be."""

    words: str
    answers: list[RememberedAnswer]  # the oldest first


class Run(NamedTuple):
    """Characters [begin, end) of a prompt, and the token ids that stand for them."""

    begin: int
    end: int
    token_ids: list[int]


def find_runs(tokenizer: Tokenizer, prompt: str, found: Iterable[Candidates]) -> list[Run]:
    """Where a prompt has the text of answers, in its order. Of those that overlap, as an answer's
    last spaces may be the first of the next, the one before is taken.
    """
    by_place: dict[int, Run] = {}
    for words, answers in found:
        for answer in answers:  # the latest of a place counts
            if (run := _place(tokenizer, answer, words, prompt)) is not None:
                by_place[run.begin] = run
    runs: list[Run] = []
    for begin in sorted(by_place):
        if not runs or runs[-1].end <= begin:
            runs.append(by_place[begin])
    return runs


def pieces_between(prompt: str, runs: Sequence[Run]) -> list[str]:
    """What of a prompt is left for the tokenizer: before each run, and behind the last."""
    begins = [0, *(run.end for run in runs)]
    ends = [*(run.begin for run in runs), len(prompt)]
    return [prompt[begin:end] for begin, end in zip(begins, ends, strict=True)]


def join_runs(
    tokenizer: Tokenizer, prompt: str, runs: Sequence[Run], pieces: Sequence[list[int]]
) -> list[int] | None:
    """The prompt's token ids, given those of the pieces between the runs. None where they don't
    stand for exactly its text: a tokenizer may change a text, and the beginning of one more than
    what follows.
    """
    ids = list(pieces[0])
    for run, piece in zip(runs, pieces[1:], strict=True):
        ids += run.token_ids
        ids += piece
    return ids if tokenizer.decode(ids, skip_special_tokens=False) == prompt else None


def _key(owner: Owner, words: str) -> bytes:
    digest = blake2b(repr(owner).encode(), digest_size=16)
    digest.update(words.encode("utf-8", "surrogatepass"))
    return digest.digest()


def _total(answers: Iterable[RememberedAnswer]) -> int:
    return sum(answer.num_bytes for answer in answers)


class _Spelling(NamedTuple):
    """An answer's token ids as text."""

    token_ids: Sequence[int]
    data: bytes  # UTF-8
    limits: list[int]  # the byte that each begins at, then where the last ends; -1: in a character


def _spell(tokenizer: Tokenizer, token_ids: Sequence[int]) -> _Spelling:
    table = tokenizer.byte_table(skip_special_tokens=False)
    tokens = [table[token_id] for token_id in token_ids]
    data = b"".join(tokens)
    try:
        data.decode()
    except UnicodeDecodeError:  # the client was shown U+FFFD
        return _spell_as_shown(token_ids, tokens)
    limits = [
        limit if limit == len(data) or data[limit] & 0xC0 != 0x80 else -1
        for limit in (0, *accumulate(map(len, tokens)))
    ]
    return _Spelling(token_ids, data, limits)


def _spell_as_shown(token_ids: Sequence[int], tokens: Iterable[bytes]) -> _Spelling:
    """The text of tokens that are not UTF-8, without a character that their end cuts."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    data, limits = bytearray(), [0]
    for token in tokens:
        data += decoder.decode(token).encode()
        limits.append(-1 if decoder.getstate()[0] else len(data))
    return _Spelling(token_ids, bytes(data), limits)


def _place(tokenizer: Tokenizer, answer: RememberedAnswer, words: str, prompt: str) -> Run | None:
    """The run that the prompt has of an answer."""
    begins = [
        turn.position
        for turn in answer.turns
        if prompt.startswith(turn.before, turn.position - len(turn.before))
    ]
    if not begins:
        return None
    spelling, shown = _spell(tokenizer, answer.token_ids), words.encode()
    first = spelling.data.rfind(shown)
    if first < 0:  # special tokens that weren't shown stand in it
        return None
    head = spelling.data[:first].decode()
    for begin in begins:
        if prompt.startswith(head, begin) and prompt.startswith(words, begin + len(head)):
            first_byte, end = 0, begin + len(head) + len(words)
        else:  # a thought that the template leaves out, or other spaces
            begin += _num_spaces(prompt, begin)
            first_byte, end = first, begin + len(words)
            if not prompt.startswith(words, begin):
                continue
        last_byte = first + len(shown)
        last_byte += _num_common_spaces(spelling.data[last_byte:], prompt, end)
        run = _cut(spelling, range(first_byte, last_byte), begin)
        return run if run is not None and _same_tokens(tokenizer, prompt, run) else None
    return None


def _num_spaces(text: str, begin: int) -> int:
    part = text[begin : begin + TURN_CHARS]
    return len(part) - len(part.lstrip())


def _num_common_spaces(data: bytes, text: str, begin: int) -> int:
    """How many bytes of `data` are the spaces that stand in the text, too."""
    count = 0
    for byte, character in zip(data, text[begin : begin + TURN_CHARS], strict=False):
        if byte not in _SPACE or byte != ord(character):
            break
        count += 1
    return count


def _cut(spelling: _Spelling, part: range, begin: int) -> Run | None:
    """The whole tokens among some bytes of an answer, a text that begins at character `begin` of a
    prompt; cut where characters begin.
    """
    ids, data, limits = spelling
    inside = [index for index, limit in enumerate(limits) if part.start <= limit <= part.stop]
    if len(inside) < 2:
        return None
    first, last = inside[0], inside[-1]
    begin += len(data[part.start : limits[first]].decode())
    end = begin + len(data[limits[first] : limits[last]].decode())
    return Run(begin, end, list(ids[first:last]))


def _same_tokens(tokenizer: Tokenizer, prompt: str, run: Run) -> bool:
    """Whether the text of added tokens, such as <|im_end|>, stands in a run only where its ids are
    these tokens, and nowhere across its ends: the tokenizer would make one of it.
    """
    found = []
    for begin, end in tokenizer.added_token_spans(prompt, run.begin, run.end):
        if begin < run.begin or end > run.end:
            return False
        found.append(prompt[begin:end])
    added = tokenizer.added_tokens
    return found == [added[token_id] for token_id in run.token_ids if token_id in added]
