"""TokenFloor: how many tokens a text has at least, found without making them.

A token that has n bytes holds no byte b unless n is at most L(b), the length of the longest token
with that byte in it. So each byte of a text is at least 1 / L(b) of a token, and the sum over the
text is a lower bound of its tokens: one letter among very long tokens counts for little, a digit
or a Chinese character for much. Bytes that an encoder may drop, or take into tokens of any length,
count for nothing. Where a step of the encoder isn't known here, nothing counts.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from minisgl.tokenizer.token_bytes import WORD_MARK, DecoderKind

if TYPE_CHECKING:
    import tokenizers

SLICE_CHARACTERS = 2**16  # looked at in one go, in less than a millisecond
# Composing a slice for itself, without what stands beside it, leaves a few characters more.
_CUT_DOUBT = 16  # tokens
_NOTHING = 255  # the class of bytes that don't count
_WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]


class TokenFloor:
    """Made once per tokenizer, in about a microsecond per token of the vocabulary."""

    def __init__(self, backend: tokenizers.Tokenizer, kind: DecoderKind) -> None:
        self._form: Form | None = None
        # Of each byte, k where L(b) is at most 2**k; and the classes there are.
        self._classes = bytes([_NOTHING]) * 256
        if self._knows(backend):
            self._classes = bytes(_classes(backend, kind, self._form))
        self._used = [bytes([k]) for k in sorted(set(self._classes) - {_NOTHING})]

    def parts(self, text: str) -> Iterator[float]:
        """Slice after slice, how many tokens more there are at least. `text` has no lone
        surrogates.
        """
        for start in range(0, len(text), SLICE_CHARACTERS):
            part = text[start : start + SLICE_CHARACTERS]
            if self._form is not None:
                part = unicodedata.normalize(self._form, part)
            classes = part.encode().translate(self._classes)
            yield sum(classes.count(k) / 2 ** k[0] for k in self._used) - _CUT_DOUBT

    def _knows(self, backend: tokenizers.Tokenizer) -> bool:
        from tokenizers import models

        model = backend.model
        return (
            isinstance(model, models.BPE)
            and not model.continuing_subword_prefix
            and not model.end_of_word_suffix
            and all(map(self._knows_normalizer, _steps(backend.normalizer, "normalizers")))
            and all(map(_keeps_characters, _steps(backend.pre_tokenizer, "pretokenizers")))
        )

    def _knows_normalizer(self, step: dict[str, Any]) -> bool:
        match step:
            case {"type": "Prepend"}:
                return True
            case {"type": "Replace", "pattern": {"String": " "}, "content": content}:
                return bool(content == WORD_MARK)
            case {"type": "NFC" | "NFD" | "NFKC" | "NFKD" as form} if self._form is None:
                self._form = form
                return True
        return False


def _steps(component: Any, name: str) -> list[dict[str, Any]]:
    """The descriptions of a normalizer or pre-tokenizer's steps."""
    if component is None:
        return []
    steps = [json.loads(component.__getstate__())]
    while any(step["type"] == "Sequence" for step in steps):
        steps = [
            inner
            for step in steps
            for inner in (step[name] if step["type"] == "Sequence" else [step])
        ]
    return steps


def _keeps_characters(step: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer drops nothing."""
    if step["type"] in ("Split", "Punctuation"):
        return bool(step["behavior"] != "Removed")
    return step["type"] in ("ByteLevel", "Digits", "Metaspace")


def _classes(backend: tokenizers.Tokenizer, kind: DecoderKind, form: Form | None) -> list[int]:
    classes = [_NOTHING] * 256
    tokens, droppable = _tokens(backend, kind, form)
    tokens.sort(key=len, reverse=True)
    missing = set(range(256)) - droppable
    for token in tokens:
        if found := missing.intersection(token):
            missing -= found
            for byte in found:
                classes[byte] = (len(token) - 1).bit_length()
    return classes


def _tokens(
    backend: tokenizers.Tokenizer, kind: DecoderKind, form: Form | None
) -> tuple[list[bytes], set[int]]:
    """What each token may stand for, as bytes of a text, and the bytes that may vanish."""
    added = backend.get_added_tokens_decoder()
    names = backend.get_vocab(with_added_tokens=True)
    tokens = [token.content.encode() for token in added.values()]
    if form is not None:
        tokens += [unicodedata.normalize(form, token.content).encode() for token in added.values()]
    every = [bytes([byte]) for byte in range(256)]
    if kind.byte_level:
        tokens += [kind.bytes_of(name) for name in names]
        droppable = {one[0] for one in every} - {token[0] for token in tokens if len(token) == 1}
    else:
        fallback = {f"<0x{byte:02X}>" for byte in range(256)}
        complete = kind.byte_fallback and fallback <= names.keys()
        never = fallback if complete and not backend.model.ignore_merges else set()
        written = names.keys() - never  # a text never has those as they are written
        # A space is found in the mark that stands for it: both of them are in such a token.
        tokens += [name.encode() + (b" " if WORD_MARK in name else b"") for name in written]
        droppable = set()
        if complete:
            tokens += every
        else:  # an unknown character vanishes, or is one with its neighbours
            known = {ord(name) for name in names if len(name) == 1 and name.isascii()}
            droppable = {one[0] for one in every} - known
    if any(token.lstrip or token.rstrip for token in added.values()):
        droppable |= set(_WHITESPACE.encode())  # any number of them is part of such a token
    return tokens, droppable
