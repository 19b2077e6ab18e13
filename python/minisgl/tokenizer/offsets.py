"""Where the tokens of a text stand in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minisgl.tokenizer.incremental import DetokenizerOptions, IncrementalDetokenizer

if TYPE_CHECKING:
    from minisgl.tokenizer.tokenizer import Tokenizer


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


def offsets_of_ids(
    tokenizer: Tokenizer, token_ids: Sequence[int], *, skip_special_tokens: bool
) -> list[int]:
    """Characters that stand before each token in the text which these ids are decoded to."""
    options = DetokenizerOptions(skip_special_tokens=skip_special_tokens)
    detokenizer = IncrementalDetokenizer(tokenizer, options)
    offsets, offset = [], 0
    for token_id in token_ids:
        offsets.append(offset)
        offset += len(detokenizer.push([token_id]))
    return offsets
