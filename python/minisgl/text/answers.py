"""Answers that clients send back. The next request of a conversation has the text of the answers
before, and a tokenizer may cut it into other tokens than those that were generated: what the engine
has computed for them, and for all that follows, would be computed again. AnswerMemory keeps the
token ids of answers, by the conversations that they answered; find_runs() tells where a prompt has
an answer's text again, and join_runs() uses the ids there.

What the model reads is the prompt's text in any case, token by token the tokenizer's or what was
generated at the same place of a conversation: where that was no UTF-8, its own bytes in place of
the U+FFFD that the client was shown. Whatever can't be shown to be so is the tokenizer's.
"""

from __future__ import annotations

import codecs
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from minisgl.text.recently_used import RecentlyUsed

if TYPE_CHECKING:
    from minisgl.tokenizer import Tokenizer

MAX_CONVERSATIONS = 65536  # whose next answers are remembered
MAX_SAME = 16  # answers to one conversation
TURN_CHARS = 64  # of a prompt, by which the beginning of an answer is known again
NUM_OVERHEAD_BYTES = 400  # of an answer that is remembered, beside its ids

_THOUGHT_END = "</think>"
_OPENED_THOUGHT = re.compile(r"<think>\s*(?:</think>\s*)?\Z")
_SPACE = b" \t\r\n"

# Whose answers they are: the number of the API key, and the request's cache_salt. Nobody learns
# from a prompt's number of tokens what somebody else was answered.
Owner = tuple[int | None, str | None]


class Conversations(NamedTuple):
    """Keys of a conversation's beginnings, by which their answers are known."""

    answered: list[bytes]  # up to each of the assistant's messages
    whole: bytes


def conversations(owner: Owner, messages: Iterable[dict[str, Any]]) -> Conversations:
    """`messages` are TemplateClient.render's. What an assistant's message says is its last words
    and its calls: clients leave thoughts out sooner or later.
    """
    digest = blake2b(repr(owner).encode(), digest_size=16)
    answered = []
    for message in messages:
        role, content, calls = (message.get(name) for name in ("role", "content", "tool_calls"))
        if role == "assistant":
            answered.append(digest.digest())
            content = last_words(content) if isinstance(content, str) else content
        text = content if isinstance(content, str) else ""
        digest.update(f"{role!r} {len(text)} {calls or None!r}\n".encode())
        digest.update(text.encode("utf-8", "surrogatepass"))
    return Conversations(answered, digest.digest())


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
    words: str  # the last ones, as the client was shown them

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, about."""
        return NUM_OVERHEAD_BYTES + self.token_ids.itemsize * len(self.token_ids) + len(self.words)


class AnswerMemory:
    """Recent answers, by their conversations. Those that were used longest ago are forgotten."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: memory that they take at most, about."""
        self._max_bytes = max_bytes
        self._answers = RecentlyUsed[bytes, list[RememberedAnswer]](
            max_bytes, MAX_CONVERSATIONS, _total
        )

    @property
    def num_bytes(self) -> int:
        """Memory that they take, about."""
        return self._answers.num_bytes

    def remember(
        self, conversation: bytes, turns: tuple[Turn, ...], token_ids: Sequence[int], text: str
    ) -> None:
        """Keeps an answer. `conversation` is the key of what it answers, `turns` is turns_of() its
        prompt, `text` is what the client was shown of it.
        """
        words = last_words(text)
        answer = RememberedAnswer(turns, array("i", token_ids), words)
        if not words or not turns or answer.num_bytes > self._max_bytes:
            return
        same = self._answers.remove(conversation) or []
        others = (one for one in same if (one.turns, one.words) != (turns, words))
        self._answers.add(conversation, [*others, answer][-MAX_SAME:])

    def find(self, keys: Conversations) -> list[RememberedAnswer]:
        """What is known of a conversation's answers, the oldest first."""
        found = []
        for key in keys.answered:
            found += self._answers.get(key) or []
        return found


class Run(NamedTuple):
    """Characters [begin, end) of a prompt, and the token ids that stand for them."""

    begin: int
    end: int
    token_ids: list[int]


def find_runs(tokenizer: Tokenizer, prompt: str, found: Iterable[RememberedAnswer]) -> list[Run]:
    """Where a prompt has the text of answers, in its order. Of those that overlap, as an answer's
    last spaces may be the first of the next, the one before is taken.
    """
    by_place: dict[int, Run] = {}
    for answer in found:  # the longest of a place counts, of these the latest
        run = _place(tokenizer, answer, prompt)
        if run is not None and (run.begin not in by_place or run.end >= by_place[run.begin].end):
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


def _place(tokenizer: Tokenizer, answer: RememberedAnswer, prompt: str) -> Run | None:
    """The run that the prompt has of an answer."""
    begins = [
        turn.position
        for turn in answer.turns
        if prompt.startswith(turn.before, turn.position - len(turn.before))
    ]
    if not begins:
        return None
    spelling = _spell(tokenizer, answer.token_ids)
    first = spelling.data.rfind(answer.words.encode())
    if first < 0:  # special tokens that weren't shown stand in it
        return None
    for begin in begins:
        if (part := _find_part(spelling.data, first, answer.words, prompt, begin)) is not None:
            run = _cut(spelling, *part)
            return run if run is not None and _same_tokens(tokenizer, prompt, run) else None
    return None


def _find_part(
    data: bytes, first: int, words: str, prompt: str, begin: int
) -> tuple[range, int] | None:
    """The bytes of an answer, whose words begin at byte `first`, that stand at a place of the
    prompt, and the character that they begin at.
    """
    head = data[:first].decode()
    thought = head[: head.rfind(_THOUGHT_END) + len(_THOUGHT_END)] if _THOUGHT_END in head else ""
    behind_spaces = begin + _num_spaces(prompt, begin)
    if prompt.startswith(head, begin) and prompt.startswith(words, begin + len(head)):
        first_byte, text = 0, head + words
    elif prompt.startswith(words, behind_spaces):  # the template leaves out a thought, or spaces
        first_byte, text, begin = first, words, behind_spaces
    elif thought and prompt.startswith(thought, begin):  # and writes words, or a call, anew
        first_byte, text = 0, thought
    else:
        return None
    last_byte = first_byte + len(text.encode())
    last_byte += _num_common_spaces(data[last_byte:], prompt, begin + len(text))
    return range(first_byte, last_byte), begin


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
