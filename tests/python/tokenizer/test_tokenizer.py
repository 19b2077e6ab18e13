"""Tokenizer: token bytes, ids outside of the vocabulary, text that isn't Unicode."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from minisgl.model_files.files import ModelError
from minisgl.tokenizer import Tokenizer
from minisgl.tokenizer.template_source import ChatTemplateError, TemplateSource
from tests.python.tokenizer.vocabularies import byte_level_bpe


def test_token_bytes_put_together_are_the_text(byte_level: Tokenizer) -> None:
    text = "Größe 中文 😀\n"
    assert b"".join(map(byte_level.token_bytes, byte_level.encode(text))) == text.encode()


def test_sentencepiece_token_bytes(sentencepiece_style: Tokenizer) -> None:
    text = "the 中☃"  # the last two come as single bytes or as themselves
    ids = sentencepiece_style.encode(text, add_special_tokens=False)
    assert b"".join(map(sentencepiece_style.token_bytes, ids)) == (" " + text).encode()


@pytest.mark.parametrize("token_id", [-1, 10**6, 2**31, 2**64])
def test_ids_outside_of_the_vocabulary_are_nothing(byte_level: Tokenizer, token_id: int) -> None:
    assert byte_level.token_bytes(token_id) == b""
    assert byte_level.decode([token_id]) == ""


def test_merges_need_a_token_for_every_byte_of_others(byte_level: Tokenizer) -> None:
    token_bytes = byte_level.token_bytes
    merges = byte_level.merges()
    units, pairs = merges[:256], merges[256:]
    assert {token_bytes(unit) for *_, unit in units} == {bytes([byte]) for byte in range(256)}
    assert len(pairs) > 100
    assert all(token_bytes(a) + token_bytes(b) == token_bytes(made) for a, b, made in pairs)
    written = json.loads(byte_level_bpe().to_str())
    vocabulary = written["model"]["vocab"]
    vocabulary["zzzz"] = vocabulary.pop("~")  # which no text can have now
    left = Tokenizer(Backend.from_str(json.dumps(written))).merges()
    assert len(left) == len(merges) - 1
    vocabulary["z~~z"] = vocabulary.pop("zzzz")
    assert Tokenizer(Backend.from_str(json.dumps(written))).merges() == []


def merged(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text by the tokenizer's merges, one after the other."""
    units: dict[bytes, int] = {}
    pairs: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, (left, right, made) in enumerate(tokenizer.merges()):
        if left < 0:
            units.setdefault(tokenizer.token_bytes(made), made)
        else:
            pairs[left, right] = (rank, made)
    ids: list[int] = []
    for character in text:
        data = character.encode()
        ids += [units[data]] if data in units else [units[bytes([byte])] for byte in data]
    while found := [(pairs[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in pairs]:
        (_, made), at = min(found)
        ids[at : at + 2] = [made]
    return ids


@pytest.mark.parametrize(
    "text",
    [
        "the other there then",
        '{"argument": [true, 12]}',
        "Größe, naïve   中文字符 ☃😀\n\tΩ",
        "\x7f\x00",
    ],
)
def test_merges_are_those_of_sentencepiece(sentencepiece_style: Tokenizer, text: str) -> None:
    # The encoder puts a space before a text.
    assert merged(sentencepiece_style, " " + text) == sentencepiece_style.encode(
        text, add_special_tokens=False
    )


def test_merges_are_those_of_bytes(byte_level: Tokenizer) -> None:
    for word in ("this", "think", "中文字符", "argument"):  # which the encoder doesn't cut
        assert merged(byte_level, word) == byte_level.encode(word)


def test_bytes_that_sentencepiece_has_within_characters_alone_are_no_begin() -> None:
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "ab", "é"]
    for left_out in (None, "<0x41>", "<0xC3>"):
        vocabulary = {token: i for i, token in enumerate(tokens) if token != left_out}
        backend = Backend(models.BPE(vocabulary, [("a", "b")], byte_fallback=True))
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        assert bool(Tokenizer(backend).merges()) is (left_out != "<0xC3>")


def test_special_tokens(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("<|im_start|>hi<|im_end|>")
    assert ids[0] == 1
    assert ids[-1] == 2
    assert byte_level.decode(ids) == "hi"
    assert byte_level.decode(ids, skip_special_tokens=False) == "<|im_start|>hi<|im_end|>"
    assert byte_level.token_bytes(1) == b"<|im_start|>"


def test_lone_surrogates_are_refused(byte_level: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate '\\udc00' at character 2"):
        byte_level.encode("ab\udc00")
    with pytest.raises(ValueError, match="text must be a string, got int"):
        byte_level.encode(3)  # type: ignore[arg-type]


def test_render_chat(byte_level: Tokenizer) -> None:
    source = TemplateSource(
        {"default": "{{ bos_token }}{{ messages[0].content }}"}, {"bos_token": "<"}
    )
    tokenizer = Tokenizer(byte_level_bpe(), chat_template=source)
    assert tokenizer.render_chat([{"role": "user", "content": "hi"}]) == "<hi"
    with pytest.raises(ChatTemplateError, match="no chat template"):
        byte_level.render_chat([])


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece(), decoders.BPEDecoder()])
def test_decoders_of_other_kinds_are_refused(decoder: object) -> None:
    backend = Backend(models.BPE())
    if decoder is not None:
        backend.decoder = decoder
    with pytest.raises(ModelError, match="decoder .* is not supported"):
        Tokenizer(backend)


def test_metaspace_decoder() -> None:
    backend = Backend(models.BPE({"\u2581a": 0, "\u2581b": 1, "<0x41>": 2}, []))
    backend.decoder = decoders.Metaspace()
    assert Tokenizer(backend).decode([0, 1, 2]) == backend.decode([0, 1, 2]) == "a b<0x41>"
