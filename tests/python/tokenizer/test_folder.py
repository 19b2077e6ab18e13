"""Tokenizers of model folders: the files that such folders have, in all their forms."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, processors

from minisgl.model_files.files import ModelError
from minisgl.tokenizer import Tokenizer, load_tokenizer
from minisgl.tokenizer.fill_in_middle import FillInMiddle
from tests.python.tokenizer.vocabularies import (
    byte_level_bpe,
    byte_level_fields,
    sentencepiece_model,
    write_gguf,
)

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


def test_fill_in_the_middle_tokens(tmp_path: Path) -> None:
    names = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    backend = byte_level_bpe()
    backend.add_tokens(names)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert load(tmp_path).fill_in_middle == FillInMiddle(*names)


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
    assert load(folder).render_chat(USER) == "<|im_start|>A"


def test_chat_template_as_a_list(folder: Path) -> None:
    templates = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    write(folder, "tokenizer_config.json", {"chat_template": templates})
    assert load(folder).render_chat(USER) == "A"
    assert load(folder).render_chat(USER, tools=[{}]) == "B"


def test_chat_template_files_count_more(folder: Path) -> None:
    write(folder, "chat_template.json", {"chat_template": "B"})
    assert load(folder).render_chat(USER) == "B"  # where there is no other
    templates = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "T"}]
    write(folder, "tokenizer_config.json", {"chat_template": templates})
    assert load(folder).render_chat(USER) == "A"
    assert load(folder).render_chat(USER, tools=[{}]) == "T"
    write(folder, "chat_template.jinja", "C")
    assert load(folder).render_chat(USER, tools=[{}]) == "C"
    write(folder, "additional_chat_templates/tool_use.jinja", "D")
    assert load(folder).render_chat(USER) == "C"
    assert load(folder).render_chat(USER, tools=[{}]) == "D"
    assert load_tokenizer(str(folder), chat_template="mine").render_chat(USER) == "mine"


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


DECODER = {"added_tokens_decoder": {"1": {"content": "<|im_start|>", "special": True}}}


@pytest.mark.parametrize(
    ("config", "older", "right"),
    [
        ({"eos_token": "<|im_end|>", **DECODER}, {"eos_token": "<|im_start|>"}, "<|im_end|>"),
        ({"eos_token": None, **DECODER}, {"eos_token": "<|im_start|>"}, None),
        (DECODER, {"eos_token": "<|im_start|>"}, None),
        ({"eos_token": "<|im_end|>"}, {"eos_token": "<|im_start|>"}, "<|im_start|>"),
        ({"eos_token": "<|im_end|>"}, {"eos_token": {"content": "<|im_start|>"}}, "<|im_start|>"),
        ({"eos_token": "<|im_end|>"}, {}, "<|im_end|>"),
        ({}, {"eos_token": "<|im_start|>"}, "<|im_start|>"),
    ],
)
def test_names_of_special_tokens_as_transformers_takes_them(
    folder: Path, config: dict[str, Any], older: dict[str, Any], right: str | None
) -> None:
    write(folder, "tokenizer_config.json", {"chat_template": "{{ eos_token }}", **config})
    write(folder, "special_tokens_map.json", older)
    tokenizer = load(folder)
    assert [tokenizer.token_bytes(i).decode() for i in tokenizer.eos_token_ids] == (
        [] if right is None else [right]
    )
    assert tokenizer.render_chat(USER) == (right or "")
    transformers = pytest.importorskip("transformers")
    write(folder, "config.json", {"model_type": "llama"})
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    assert theirs.eos_token == right


@pytest.mark.parametrize("in_tokenizer_json", [[], [1], [1, 0], [0]])
@pytest.mark.parametrize("bos", [True, False, None])
@pytest.mark.parametrize("eos", [True, False, None])
def test_bos_and_eos_follow_the_configuration(
    tmp_path: Path, in_tokenizer_json: list[int], bos: bool | None, eos: bool | None
) -> None:
    """1 is BOS, 0 is EOS."""
    backend = byte_level_bpe()
    parts = {1: "<|im_start|>", 0: "<|endoftext|>"}
    backend.post_processor = processors.TemplateProcessing(
        single=[
            *(parts[i] for i in in_tokenizer_json if i == 1),
            "$A",
            *(parts[i] for i in in_tokenizer_json if i == 0),
        ],
        special_tokens=[(text, token_id) for token_id, text in parts.items()],
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": parts[1], "eos_token": parts[0]}
    write(tmp_path, "tokenizer_config.json", {**config, "add_bos_token": bos, "add_eos_token": eos})
    tokenizer = load(tmp_path)
    has_bos = bos if bos is not None else 1 in in_tokenizer_json
    has_eos = eos if eos is not None else 0 in in_tokenizer_json
    text = tokenizer.encode("hi", add_special_tokens=False)
    assert tokenizer.encode("hi") == [1] * has_bos + text + [0] * has_eos
    assert tokenizer.encode("") == [1] * has_bos + [0] * has_eos


def test_a_folder_and_a_gguf_file_begin_alike(folder: Path) -> None:
    for add in (True, False):
        config = {"add_bos_token": add, "bos_token": "<|im_start|>"}
        write(folder, "tokenizer_config.json", config)
        fields = byte_level_fields(ggml__bos_token_id=1, ggml__add_bos_token=add)
        gguf = load_tokenizer(str(write_gguf(folder / "m.gguf", fields)))
        assert load(folder).encode("hi") == gguf.encode("hi")
        assert (load(folder).encode("hi")[0] == 1) == add


def test_bos_that_the_vocabulary_lacks(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"add_bos_token": True, "bos_token": "<none>"})
    assert load(folder).encode("hi") == byte_level_bpe().encode("hi").ids
    write(folder, "tokenizer_config.json", {"add_bos_token": True, "bos_token": None})
    assert load(folder).encode("hi") == byte_level_bpe().encode("hi").ids


@pytest.mark.parametrize(
    "form", [["word", "not there"], {"image_token": "word"}, [{"content": "word"}]]
)
def test_extra_special_tokens(folder: Path, form: Any) -> None:
    word = load(folder).token_bytes(300).decode()
    text = json.dumps({"extra_special_tokens": form}).replace("word", word)
    write(folder, "tokenizer_config.json", text)
    assert load(folder).special_token_ids == {0, 1, 2, 300}


FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"special": True},
        {"special": False},
        {"special": True, "lstrip": True},
        {"special": False, "rstrip": True},
        {"special": True, "lstrip": True, "rstrip": True},
        {"eos_token": "<tool>"},
        {"special": False, "rstrip": True, "eos_token": "<tool>"},
        {"extra_special_tokens": ["<tool>"]},
    ],
)
def test_descriptions_of_added_tokens_as_transformers_takes_them(
    tmp_path: Path, special: bool, config: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    backend = byte_level_bpe()
    backend.add_tokens([AddedToken("<tool>", special=special, normalized=False)])
    backend.save(str(tmp_path / "tokenizer.json"))
    described = {
        key: value for key, value in config.items() if not key.endswith(("token", "tokens"))
    }
    others = {key: value for key, value in config.items() if key not in described}
    if described:
        token_id = str(backend.token_to_id("<tool>"))
        others["added_tokens_decoder"] = {token_id: {"content": "<tool>", **FLAGS, **described}}
    write(tmp_path, "tokenizer_config.json", others)
    write(tmp_path, "config.json", {"model_type": "llama"})
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    ours = load(tmp_path)
    for text in ("a <tool> b", "<tool>", "a<tool>b  <tool>\n c"):
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False) == ids
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )


@pytest.mark.parametrize("text", ['{"x": NaN, "y": [Infinity, -Infinity]}', '{"eos_token": null}'])
def test_odd_values_of_unused_keys(folder: Path, text: str) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        write(folder, name, text)
    assert load(folder).eos_token_ids == []


SIDE_FILES: dict[str, dict[str, Any]] = {
    "tokenizer_config.json": {
        "bos_token": "<|im_start|>",
        "eos_token": {"content": "<|endoftext|>"},
        "add_bos_token": True,
        "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": True}},
        "additional_special_tokens": ["a", {"content": "b"}],
        "extra_special_tokens": {"x": "a"},
        "chat_template": [{"name": "default", "template": "x"}],
    },
    "special_tokens_map.json": {"eos_token": "<|endoftext|>"},
    "generation_config.json": {"eos_token_id": [1, 2], "temperature": 0.5},
    "config.json": {"eos_token_id": 1, "bos_token_id": 0},
    "chat_template.json": {"chat_template": "x"},
}
STRANGE: list[Any] = [
    *(None, True, -1, 0, 2**31, 2**64, 10**30, 1.5, float("nan"), float("inf")),
    *("", "x", "\ud800", "a\0b", "{{ x", [], [[]], ["a", None, 1, {"content": "q"}]),
    *({}, {"content": 1}, {"content": "\udfff"}, {"content": None}, {"-1": {"content": "z"}}),
    *({"\u00b2": {"content": "x"}}, {"9" * 5000: {"content": "y"}}),
    {"1": {"content": "p"}, "01": {"content": "q"}},
]


def test_values_of_any_shape_are_taken_or_refused_in_a_sentence(folder: Path) -> None:
    for name, content in SIDE_FILES.items():
        for number, path in enumerate(paths(content)):
            for value in STRANGE[number % 3 :: 3]:  # each somewhere, and each place gets several
                (folder / name).write_text(json.dumps(put(content, path, value)))
                with contextlib.suppress(ModelError):  # any other exception is a traceback
                    tokenizer = load(folder)
                    assert tokenizer.encode("hello")
        (folder / name).unlink()


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there is something in a JSON value."""
    yield above
    keys = (
        list(value)
        if isinstance(value, dict)
        else range(len(value) if isinstance(value, list) else 0)
    )
    for key in keys:
        yield from paths(value[key], (*above, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a JSON value with another one at a place of it."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


def test_many_added_tokens_take_no_longer_than_they_must(folder: Path) -> None:
    """One call for each of them took hours for as many as a file may have."""
    size = load(folder).vocab_size
    added = {str(size + n): {"content": f"<{n}>"} for n in range(20_000)}
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": added})
    assert load(folder).encode("<19999>") == [size + 19_999]


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
