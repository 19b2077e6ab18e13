"""Tokenizers of model folders: the files that such folders have, in all their forms."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minisgl.model_files.files import ModelError
from minisgl.tokenizer import Tokenizer, load_tokenizer
from tests.python.tokenizer.rendering import render
from tests.python.tokenizer.vocabularies import byte_level_bpe, sentencepiece_model

USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_level_bpe().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write(folder: Path, name: str, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


def load(folder: Path) -> Tokenizer:
    return load_tokenizer(str(folder))


def test_tokenizer_json_alone(folder: Path) -> None:
    tokenizer = load(folder)
    assert tokenizer.encode("hello") == byte_level_bpe().encode("hello").ids
    assert tokenizer.eos_token_ids == []
    assert tokenizer.chat_template is None


def test_leftovers_of_training_cut_nothing(tmp_path: Path) -> None:
    backend = byte_level_bpe()
    backend.enable_truncation(max_length=3)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert load(tmp_path).encode("hello there") == byte_level_bpe().encode("hello there").ids


def test_end_tokens_come_from_every_file(folder: Path) -> None:
    write(folder, "config.json", {"eos_token_id": 0})
    write(folder, "generation_config.json", {"eos_token_id": [2, 7]})
    write(folder, "tokenizer_config.json", {"eos_token": {"content": "<|im_start|>"}})
    assert load(folder).eos_token_ids == [0, 1, 2, 7]


def test_end_tokens_that_are_none(folder: Path) -> None:
    write(folder, "config.json", {"eos_token_id": None})
    write(folder, "generation_config.json", {"eos_token_id": [True, -1]})
    write(folder, "tokenizer_config.json", {"eos_token": "not in the vocabulary"})
    assert load(folder).eos_token_ids == []


def test_chat_template_in_the_configuration(folder: Path) -> None:
    config = {"chat_template": "{{ bos_token }}A", "bos_token": {"content": "<|im_start|>"}}
    write(folder, "tokenizer_config.json", config)
    assert render(load(folder), USER) == "<|im_start|>A"


def test_chat_template_as_a_list(folder: Path) -> None:
    templates = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    write(folder, "tokenizer_config.json", {"chat_template": templates})
    assert render(load(folder), USER) == "A"
    assert render(load(folder), USER, tools=[{}]) == "B"


def test_chat_template_files_count_more(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"chat_template": "A"})
    write(folder, "chat_template.json", {"chat_template": "B"})
    assert render(load(folder), USER) == "B"
    write(folder, "chat_template.jinja", "C")
    write(folder, "additional_chat_templates/tool_use.jinja", "D")
    assert render(load(folder), USER) == "C"
    assert render(load(folder), USER, tools=[{}]) == "D"
    assert render(load_tokenizer(str(folder), chat_template="mine"), USER) == "mine"


def test_tokens_that_only_the_configuration_has(folder: Path) -> None:
    size = load(folder).vocab_size
    added = {
        "0": {"content": "<|endoftext|>", "special": True},
        str(size): {"content": "<tool>", "special": False},
        str(size + 1): {"content": "<end>", "special": True},
    }
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": added})
    tokenizer = load(folder)
    assert tokenizer.encode("a<tool>b<end>")[-1] == size + 1
    assert size in tokenizer.encode("a<tool>b<end>")
    assert tokenizer.decode(tokenizer.encode("a<tool>b<end>")) == "a<tool>b"
    added["9999"] = {"content": "<far>"}
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": added})
    with pytest.raises(ModelError, match="gives '<far>' the id 9999"):
        load(folder)


def test_named_tokens_of_the_vocabulary_become_special(folder: Path) -> None:
    word = load(folder).token_bytes(300).decode()
    write(folder, "tokenizer_config.json", {"additional_special_tokens": [word, "not there"]})
    assert load(folder).special_token_ids == {0, 1, 2, 300}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "tokenizer.json is not a tokenizer"),
        ("tokenizer.json", "\x00", "tokenizer.json is not a tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json can't be read as JSON"),
        ("tokenizer_config.json", "[]", "must hold a JSON object"),
        ("generation_config.json", "[" * 100_000, "can't be read as JSON"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": 1}}, "5 has no content"),
    ],
)
def test_damaged_files(folder: Path, name: str, content: Any, message: str) -> None:
    write(folder, name, content)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no tokenizer"):
        load(tmp_path)


def test_sentencepiece_model_alone(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("sentencepiece")
    processor = sentencepiece_model(tmp_path)
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    write(tmp_path, "tokenizer_config.json", config)
    write(tmp_path, "config.json", {"model_type": "llama", "eos_token_id": 2})
    tokenizer = load(tmp_path)
    for text in ("The quick brown fox", "1234 Größe", "the other thing"):
        assert tokenizer.encode(text, add_special_tokens=False) == processor.encode(text)
        assert tokenizer.decode(processor.encode(text)) == text
    assert tokenizer.eos_token_ids == [2]


def test_loading_imports_no_heavy_library(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"chat_template": "A"})
    program = (
        "import sys; from minisgl.tokenizer import load_tokenizer; load_tokenizer(sys.argv[1]);"
        "heavy = ('torch', 'transformers', 'numpy', 'jinja2');"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
