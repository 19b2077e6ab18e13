"""TokenFloor is never above the number of tokens, whatever the tokenizer and the text, and high
enough to be of use.
"""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from minisgl.tokenizer import Tokenizer
from tests.python.tokenizer.vocabularies import byte_level_bpe

WORD_MARK = "▁"


def floor_of(tokenizer: Tokenizer, text: str) -> float:
    return sum(tokenizer.floor.parts(text))


def byte_level(**changes: Any) -> Backend:
    backend = byte_level_bpe()
    for name, value in changes.items():
        setattr(backend, name, value)
    return backend


def without_a_byte() -> Backend:
    """The byte of the digit 7 has no token: it vanishes."""
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"7"})
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    backend = Backend(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def with_greedy_token() -> Backend:
    """A token that takes all spaces beside it."""
    backend = byte_level_bpe()
    backend.add_special_tokens([AddedToken("<greedy>", lstrip=True, rstrip=True, special=True)])
    return backend


def with_fused_unknown() -> Backend:
    """A run of characters outside of the vocabulary is one token."""
    names = ["<unk>", WORD_MARK, "a", "b", "ab"]
    vocabulary = {name: number for number, name in enumerate(names)}
    backend = Backend(models.BPE(vocabulary, [("a", "b")], unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", WORD_MARK)
    backend.decoder = decoders.Sequence([decoders.Replace(WORD_MARK, " "), decoders.Fuse()])
    return backend


def with_byte_fallback() -> Backend:
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [(WORD_MARK, "w"), ("o", "r"), ("\u2581w", "or"), (WORD_MARK, WORD_MARK)]
    names += [WORD_MARK, *"aword7=\n"] + [left + right for left, right in merges]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    backend = Backend(models.BPE(vocabulary, merges, byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(WORD_MARK), normalizers.Replace(" ", WORD_MARK)]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace(WORD_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend


TOKENIZERS = {
    "byte-level": byte_level_bpe,
    "composed": lambda: byte_level(normalizer=normalizers.NFC()),
    "compatible": lambda: byte_level(normalizer=normalizers.Sequence([normalizers.NFKC()])),
    "sentencepiece": with_byte_fallback,
    "without a byte": without_a_byte,
    "greedy token": with_greedy_token,
    "fused unknown": with_fused_unknown,
    "stripped": lambda: byte_level(normalizer=normalizers.Strip()),
    "replaced": lambda: byte_level(normalizer=normalizers.Replace(Regex(" +"), " ")),
    "words": lambda: byte_level(
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(use_regex=False)]
        )
    ),
}
MADE = {name: Tokenizer(make()) for name, make in TOKENIZERS.items()}
PIECES = ["the ", "7", "  ", "\n", "<greedy>", "é", "e\u0301", "ﷺ", "ﬁ", "中文", "😀", "▁", "=" * 9]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=20).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, times=st.integers(1, 300))
def test_there_are_never_fewer_tokens(name: str, text: str, times: int) -> None:
    text *= times
    tokenizer = MADE[name]
    assert floor_of(tokenizer, text) <= len(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("name", ["byte-level", "composed", "sentencepiece"])
@pytest.mark.parametrize("piece", ["word and word ", "7", "中文", "x = y\n", " "])
def test_it_is_high_enough_to_be_of_use(name: str, piece: str) -> None:
    text = piece * 20_000
    tokenizer = MADE[name]
    longest = max(len(one) for one in tokenizer._backend.get_vocab())
    assert floor_of(tokenizer, text) > len(text) / (2 * longest)
    assert floor_of(tokenizer, text) > len(tokenizer.encode(text)) / 40


def test_what_may_vanish_counts_for_nothing() -> None:
    assert floor_of(MADE["without a byte"], "7" * 100_000) <= 0
    assert floor_of(MADE["greedy token"], "<greedy>" + " " * 100_000) < 100
    for name in ("stripped", "replaced", "words"):
        assert floor_of(MADE[name], " " * 100_000) <= 0


def test_four_characters_at_most_become_one_by_composing() -> None:
    """Why no slice's end can matter by more than what is taken off for it."""
    longest = max(len(unicodedata.normalize("NFD", chr(code))) for code in range(0x110000))
    assert longest == 4
