"""Tokenizers that several tests look at."""

from __future__ import annotations

import pytest

from minisgl.tokenizer import Tokenizer, load_tokenizer
from tests.python.tokenizer.vocabularies import (
    byte_level_bpe,
    sentencepiece_fields,
    sentencepiece_model,
    write_gguf,
)


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return Tokenizer(byte_level_bpe(), eos_token_ids=[0])


@pytest.fixture(scope="session")
def sentencepiece_style(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    fields = sentencepiece_fields(sentencepiece_model(folder))
    return load_tokenizer(str(write_gguf(folder / "model.gguf", fields)))
