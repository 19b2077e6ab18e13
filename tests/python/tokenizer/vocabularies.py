"""Small vocabularies, trained on the spot, as folders and as .gguf files."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. 12345 67 890",
    "def main(argument: str) -> int:\n    return len(argument) + 1\n",
    "Größe, naïve, café, señor, Ελληνικά, русский, 中文字符, 日本語, 한국어 😀👍🏽",
    "I'm you're we'll they've it's DON'T    spaces\t\ttabs\n\n\nlines",
    "the other there then them they this that these those thing things think",
] * 20
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def byte_level_bpe() -> tokenizers.Tokenizer:
    """GPT-2's kind: 256 bytes, some merges, three special tokens at the beginning."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def merges_of(tokenizer: tokenizers.Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def tokens_of(tokenizer: tokenizers.Tokenizer) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def write_gguf(path: Path, fields: dict[str, Any], *, architecture: str = "llama") -> Path:
    """A .gguf file with metadata and no tensors. Keys stand behind "tokenizer."; lists are typed
    by their first entry.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in fields.items():
        key = "tokenizer." + key
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def byte_level_fields(**changes: Any) -> dict[str, Any]:
    """The metadata of `byte_level_bpe` as a GGUF file has it."""
    tokenizer = byte_level_bpe()
    tokens = tokens_of(tokenizer)
    fields = {
        "ggml.model": "gpt2",
        "ggml.pre": "gpt-2",
        "ggml.tokens": tokens,
        "ggml.token_type": [CONTROL if token in SPECIAL else NORMAL for token in tokens],
        "ggml.merges": [" ".join(pair) for pair in merges_of(tokenizer)],
        "ggml.bos_token_id": 0,
        "ggml.eos_token_id": 0,
    }
    fields |= {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in fields.items() if value is not None}


def sentencepiece_model(tmp_path: Path) -> Any:
    """A SentencePiece BPE processor with byte fallback, as Llama 2 and Mistral have."""
    sentencepiece = __import__("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        character_coverage=0.98,
        user_defined_symbols=["<|user|>"],
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def byte_level_alphabet() -> list[str]:
    """How GPT-2's alphabet writes each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b if b in printable else 0x100 + others.index(b)) for b in range(256)]


def sentencepiece_fields(processor: Any, **changes: Any) -> dict[str, Any]:
    ids: Sequence[int] = range(processor.vocab_size())

    def type_of(token_id: int) -> int:
        if processor.is_unknown(token_id):
            return UNKNOWN
        if processor.is_control(token_id):
            return CONTROL
        if processor.is_byte(token_id):
            return BYTE
        return USER_DEFINED if processor.id_to_piece(token_id) == "<|user|>" else NORMAL

    fields = {
        "ggml.model": "llama",
        "ggml.tokens": [processor.id_to_piece(token_id) for token_id in ids],
        "ggml.scores": [processor.get_score(token_id) for token_id in ids],
        "ggml.token_type": [type_of(token_id) for token_id in ids],
        "ggml.bos_token_id": processor.bos_id(),
        "ggml.eos_token_id": processor.eos_id(),
        "ggml.unknown_token_id": processor.unk_id(),
    }
    fields |= {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in fields.items() if value is not None}
