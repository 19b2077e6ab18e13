"""Where the tokens of a text stand in it."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minisgl.tokenizer.incremental import DetokenizerOptions, IncrementalDetokenizer

if TYPE_CHECKING:
    from minisgl.tokenizer.tokenizer import Tokenizer

MAX_UNFINISHED = 3  # bytes of a character that lacks one


def offsets_in_text(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Characters of `text` that stand before each of the tokens which it is encoded to.

    A token that isn't the text's own, such as one that begins every prompt, stands where the token
    before it ends; a token that is a part of a character, where the character begins.
    """
    offsets: list[int] = []
    ids, spans = tokenizer.encode_with_spans(text, add_special_tokens=add_special_tokens)
    end = 0
    for token_id, span in zip(ids, spans, strict=True):
        if span is None:
            offsets.append(end)
            continue
        offsets.append(_start(text, tokenizer.token_bytes(token_id), span[0], end))
        end = max(end, span[1])
    return offsets


def _start(text: str, token: bytes, start: int, end: int) -> int:
    """Where a token begins, of which its encoder says `start`; the token before it ends at `end`.

    An encoder may leave spaces at a token's beginning out of its span, or take spaces before a
    special token into it.
    """
    spaces = len(token) - len(token.lstrip(b" "))
    if spaces:
        earlier = start - spaces
        return earlier if earlier >= end and text[earlier:start].isspace() else start
    while text[start : start + 1].isspace() and not token[:1].isspace():
        start += 1
    return start


def text_of_ids(
    tokenizer: Tokenizer, token_ids: Sequence[int], *, skip_special_tokens: bool
) -> tuple[str, list[int]]:
    """The text of these ids, without a character that isn't complete at its end, and the characters
    that stand before each of them.
    """
    options = DetokenizerOptions(skip_special_tokens=skip_special_tokens)
    detokenizer = IncrementalDetokenizer(tokenizer, options)
    pieces: list[str] = []
    offsets, offset = [], 0
    for token_id in token_ids:
        offsets.append(offset)
        pieces.append(detokenizer.push([token_id]))
        offset += len(pieces[-1])
    return "".join(pieces), offsets


def unfinished_bytes(
    tokenizer: Tokenizer, token_ids: Sequence[int], *, skip_special_tokens: bool
) -> bytes:
    """The bytes of a character that isn't complete at the end of these ids."""
    table = tokenizer.byte_table(skip_special_tokens)
    data = b""
    for token_id in reversed(token_ids):
        if len(data) >= MAX_UNFINISHED:
            break
        data = table[token_id] + data
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return decoder.getstate()[0]
