"""Where tokens stand in a text: the text goes on there with what the token says."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, processors

from minisgl.tokenizer import Tokenizer
from minisgl.tokenizer.offsets import offsets_in_text, text_of_ids, unfinished_bytes
from tests.python.tokenizer.vocabularies import byte_level_bpe

WORDS = [
    "<|im_start|>",
    "<|im_end|>",
    "user",
    "\n",
    " ",
    "   ",
    "the",
    "é",
    "😀",
    "中",
    "e\u0301",
    "x",
]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=12).map("".join)


def trimming() -> tokenizers.Tokenizer:
    """GPT-2's kind with a post-processor that leaves spaces out of spans, and two tokens around
    each text.
    """
    backend = byte_level_bpe()
    ends = [("<|im_start|>", 1), ("<|endoftext|>", 0)]
    template = processors.TemplateProcessing(
        single="<|im_start|> $A <|endoftext|>", special_tokens=ends
    )
    backend.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=True), template]
    )
    return backend


def composing() -> tokenizers.Tokenizer:
    backend = byte_level_bpe()
    backend.normalizer = normalizers.NFC()
    return backend


KINDS = {
    "plain": Tokenizer(byte_level_bpe()),
    "trimming": Tokenizer(trimming()),
    "composing": Tokenizer(composing()),
}


def check(tokenizer: Tokenizer, text: str, *, normalized: bool = False) -> None:
    ids, spans = tokenizer.encode_with_spans(text)
    offsets = offsets_in_text(tokenizer, text, add_special_tokens=True)
    assert ids == tokenizer.encode(text)
    assert offsets == sorted(offsets)
    for token_id, offset, span in zip(ids, offsets, spans, strict=True):
        try:
            token = tokenizer.token_bytes(token_id).decode()
        except UnicodeDecodeError:
            continue  # a part of a character
        if span is not None and (token.isascii() or not normalized):
            assert text.startswith(token, offset), (token, offset)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(text=TEXTS)
@example(text="a     the   the <|im_end|>   ")
def test_the_text_goes_on_with_the_token(kind: str, text: str) -> None:
    check(KINDS[kind], text, normalized=kind == "composing")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_behind_the_space_that_sentencepiece_adds(
    sentencepiece_style: Tokenizer, text: str
) -> None:
    ids = sentencepiece_style.encode(text)
    offsets = offsets_in_text(sentencepiece_style, text, add_special_tokens=True)
    assert len(offsets) == len(ids)
    assert offsets == sorted(offsets)
    for token_id, offset in zip(ids, offsets, strict=True):
        token = sentencepiece_style.token_bytes(token_id)
        if token.isascii() and token_id not in sentencepiece_style.special_token_ids:
            assert text.startswith(token.decode().lstrip(" "), offset + _spaces(text, offset))


def _spaces(text: str, offset: int) -> int:
    return len(text[offset:]) - len(text[offset:].lstrip(" "))


def test_tokens_around_the_text_take_no_room() -> None:
    offsets = offsets_in_text(KINDS["trimming"], "<|im_start|>x", add_special_tokens=True)
    assert offsets == [0, 0, 12, 13]


def test_halves_of_a_character_stand_where_it_begins() -> None:
    tokenizer = KINDS["plain"]
    text = "a🜁b"
    ids = tokenizer.encode(text)
    assert len(ids) > 3
    inner = [1] * (len(ids) - 2)
    assert offsets_in_text(tokenizer, text, add_special_tokens=True) == [0, *inner, 2]
    assert text_of_ids(tokenizer, ids, skip_special_tokens=True) == (text, [0, *inner, 2])
    for cut in range(len(ids)):
        shown = unfinished_bytes(tokenizer, ids[:cut], skip_special_tokens=True)
        said = b"".join(map(tokenizer.token_bytes, ids[1:cut]))
        assert shown == (said if said != "🜁".encode() else b"")
        if shown:
            cut_text = text_of_ids(tokenizer, ids[:cut], skip_special_tokens=True)
            assert cut_text == ("a", [0, *inner][:cut])


def test_ids_count_special_tokens_where_they_are_shown() -> None:
    tokenizer = KINDS["plain"]
    ids = tokenizer.encode("<|im_start|>x<|im_end|>y")
    assert text_of_ids(tokenizer, ids, skip_special_tokens=True) == ("xy", [0, 0, 1, 1])
    shown = ("<|im_start|>x<|im_end|>y", [0, 12, 13, 23])
    assert text_of_ids(tokenizer, ids, skip_special_tokens=False) == shown
