"""The tokens that end a generation of a GGUF model, and the ids that its file doesn't name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minisgl.tokenizer import Tokenizer, load_tokenizer
from minisgl.tokenizer.gguf_vocabulary import Vocabulary
from tests.python.tokenizer.vocabularies import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    byte_level_fields,
    write_gguf,
)


def vocabulary(special: dict[str, int], kind: str = "gpt2", **fields: Any) -> Vocabulary:
    """Three words, then `special`: token -> type. Ids are given by token."""
    tokens = ["a", "b", "ab", *special]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * 3 + list(special.values()),
    }
    for name, token in fields.items():
        token_id = token if isinstance(token, int) else tokens.index(token)
        metadata[f"tokenizer.ggml.{name}_token_id"] = token_id
    return Vocabulary(metadata)


def ends(special: dict[str, int], kind: str = "gpt2", **fields: Any) -> set[str]:
    made = vocabulary(special, kind, **fields)
    return {made.tokens[token_id] for token_id in made.end_ids()}


def control(*tokens: str) -> dict[str, int]:
    return dict.fromkeys(tokens, CONTROL)


@pytest.mark.parametrize(
    ("tokens", "eos", "right"),
    [
        (
            ["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
            "<|eot_id|>",
            {"<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"},
        ),
        (
            ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            "<|im_end|>",
            {"<|endoftext|>", "<|im_end|>"},
        ),
        (
            ["<bos>", "<eos>", "<end_of_turn>", "<start_of_turn>"],
            "<eos>",
            {"<eos>", "<end_of_turn>"},
        ),
        (["<s>", "</s>", "<|end|>", "<|user|>"], "</s>", {"</s>", "<|end|>"}),
        (
            ["<bos>", "<done>", "<EOT>", "_<EOT>", "[EOS]"],
            "<done>",
            {"<done>", "<EOT>", "_<EOT>", "[EOS]"},
        ),
        (
            ["<done>", "<\uff5cend\u2581of\u2581sentence\uff5c>"],
            "<done>",
            {"<done>", "<\uff5cend\u2581of\u2581sentence\uff5c>"},
        ),
        # <|end|> stands between the messages of one answer where there is an end of all.
        (
            ["<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|endoftext|>"],
            "<|return|>",
            {"<|return|>", "<|call|>", "<|endoftext|>"},
        ),
        # After code that was filled in, the next file begins.
        (
            ["<|im_end|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
            "<|im_end|>",
            {"<|im_end|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"},
        ),
    ],
)
@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED, NORMAL])
def test_ends_by_name_whatever_their_type(
    tokens: list[str], eos: str, right: set[str], kind: int
) -> None:
    assert ends(dict.fromkeys(tokens, kind), eos=eos) == right


@pytest.mark.parametrize("key", ["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"])
def test_ends_by_id(key: str) -> None:
    assert ends(control("<x>", "<y>"), **{key: "<y>"}) == {"<y>"}


def test_a_named_id_is_the_only_one_of_its_kind() -> None:
    assert ends(control("<x>", "<|fim_pad|>"), fim_pad="<x>") == {"<x>"}


def test_the_end_of_a_sentence_that_is_also_a_tag_of_html() -> None:
    for kind in ("llama", "gpt2"):
        made = vocabulary({"<unk>": UNKNOWN, "</s>": CONTROL}, kind, eos="<unk>")
        assert made.end_ids() == {3, 4}
        made = vocabulary({"<unk>": UNKNOWN, "</s>": USER_DEFINED}, kind, eos="<unk>")
        assert made.end_ids() == {3}  # Gemma writes it
        assert made.types[4] == USER_DEFINED
        made = vocabulary({"<unk>": UNKNOWN, "</s>": NORMAL}, kind, eos="<unk>")
        assert made.end_ids() == {3, 4}
        # Qwen's text "</s>" is three tokens, as in its own tokenizer.json.
        assert made.types[4] == (CONTROL if kind == "llama" else NORMAL)


def test_an_end_with_the_type_of_text_is_special(tmp_path: Path) -> None:
    fields = byte_level_fields()
    fields["ggml.token_type"][2] = NORMAL
    tokenizer = load_tokenizer(str(write_gguf(tmp_path / "model.gguf", fields)))
    assert tokenizer.encode("hi<|im_end|>")[-1] == 2
    assert tokenizer.decode(tokenizer.encode("hi<|im_end|>")) == "hi"
    assert tokenizer.eos_token_ids == [0, 2]


def test_ids_that_a_sentencepiece_file_does_not_name() -> None:
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a"],
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, NORMAL],
    }
    made = Vocabulary(metadata)
    assert made.end_ids() == {2}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert made.named_tokens() == names
    metadata["tokenizer.ggml.eos_token_id"] = 3
    assert Vocabulary(metadata).special_id("eos") == 3


def test_ids_that_a_byte_level_file_does_not_name() -> None:
    """llama.cpp takes 11, which is Falcon's <|endoftext|>, and in most vocabularies a comma."""
    words = [chr(ord("a") + number) for number in range(11)]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [*words, "<end>", "z"],
        "tokenizer.ggml.token_type": [NORMAL] * 11 + [CONTROL, NORMAL],
    }
    assert Vocabulary(metadata).end_ids() == {11}
    assert Vocabulary(metadata).special_id("bos") == 11
    metadata["tokenizer.ggml.token_type"][11] = NORMAL
    assert Vocabulary(metadata).end_ids() == set()
    del metadata["tokenizer.ggml.token_type"]
    assert Vocabulary(metadata).end_ids() == set()


def test_an_id_that_is_none(caplog: pytest.LogCaptureFixture) -> None:
    made = vocabulary(control("<x>"), "llama", eos=99, padding=2**32 - 1)
    assert made.special_id("eos") == 2
    assert made.special_id("padding") is None
    assert [record.getMessage() for record in caplog.records] == [
        "the file's tokenizer.ggml.eos_token_id is 99, but its vocabulary has 4 tokens: 2 is taken"
    ]


def test_more_types_than_tokens() -> None:
    types = [NORMAL, CONTROL, USER_DEFINED]
    metadata = {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.token_type": types}
    assert Vocabulary(metadata).types == [NORMAL, CONTROL]


def test_empty_tokens_are_told_apart() -> None:
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "", ""]}
    assert Vocabulary(metadata).tokens == ["a", "[EMPTY_1]", "[EMPTY_2]"]


def test_default_model(default_gguf: Path) -> None:
    tokenizer: Tokenizer = load_tokenizer(str(default_gguf))
    texts = [tokenizer.token_bytes(token_id) for token_id in tokenizer.eos_token_ids]
    assert texts == [b"<|endoftext|>", b"<|im_end|>", b"<reponame>"]
