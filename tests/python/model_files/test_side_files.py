"""Files beside the weights that are no such files: each is refused in a sentence, at once."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import minisgl
from minisgl.model_files.files import ModelError
from minisgl.model_files.gguf_metadata import read_gguf_metadata
from minisgl.model_files.side_files import (
    JSON_BYTES,
    TEMPLATE_BYTES,
    TOKENIZER_BYTES,
    open_file,
    read_file,
    read_json,
    read_text,
)
from minisgl.model_files.source import resolve_model
from minisgl.tokenizer import ChatTemplateError, load_tokenizer
from minisgl.tokenizer.chat_template import ChatTemplate
from minisgl.tokenizer.template_source import read_chat_template
from tests.python.tokenizer.vocabularies import byte_level_bpe

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4984\n"

Make = Callable[[Path], object]


def sparse(size: int) -> Make:
    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    return make


# What lies there, and the word for it.
IMPOSTORS: dict[str, tuple[Make, str]] = {
    "fifo": (lambda path: os.mkfifo(path), "is a named pipe, not a regular file"),
    "zero": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a regular file"),
    "folder": (lambda path: path.mkdir(), "is a folder, not a regular file"),
    "sparse": (sparse(300 << 20), r"has 314572800 bytes; the limit for such a file is \d+"),
    "pointer": (lambda path: path.write_bytes(LFS_POINTER), "is a Git LFS pointer"),
    "page": (lambda path: path.write_text("\n<!DOCTYPE html>\n<html>"), "is an HTML page"),
}

# Each file that is read, and who reads it.
READERS: dict[str, Callable[[Path], object]] = {
    "tokenizer.json": lambda path: load_tokenizer(str(path.parent)),
    "tokenizer_config.json": lambda path: load_tokenizer(str(path.parent)),
    "special_tokens_map.json": lambda path: load_tokenizer(str(path.parent)),
    "generation_config.json": lambda path: load_tokenizer(str(path.parent)),
    "config.json": lambda path: load_tokenizer(str(path.parent)),
    "chat_template.json": lambda path: load_tokenizer(str(path.parent)),
    "chat_template.jinja": lambda path: load_tokenizer(str(path.parent)),
    "named.jinja": lambda path: read_chat_template(str(path)),
    "tokenizer.model": lambda path: load_tokenizer(str(path.parent)),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    byte_level_bpe().save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("kind", IMPOSTORS)
@pytest.mark.parametrize("name", READERS)
def test_only_files_of_a_size_are_read(whole: Path, tmp_path: Path, name: str, kind: str) -> None:
    make, words = IMPOSTORS[kind]
    if name == "tokenizer.model":
        pytest.importorskip("transformers")
        (tmp_path / "vocab.json").write_text("{}")
    elif name != "tokenizer.json":
        shutil.copy(whole / "tokenizer.json", tmp_path)
    make(tmp_path / name)
    with pytest.raises(ModelError, match=f"{name}'? {words}"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("kind", ["fifo", "zero", "folder"])
def test_weights_and_indices_too(tmp_path: Path, kind: str) -> None:
    make, words = IMPOSTORS[kind]
    make(tmp_path / "model.gguf")
    for read in (read_gguf_metadata, open_file):
        with pytest.raises(ModelError, match=words):
            read(tmp_path / "model.gguf")
    if kind != "folder":
        with pytest.raises(ModelError, match=words):
            resolve_model(str(tmp_path))


@pytest.mark.parametrize("kind", ["sparse", "pointer", "page", "fifo", "zero", "folder"])
def test_an_index_that_is_none(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    IMPOSTORS[kind][0](tmp_path / "model.safetensors.index.json")
    with pytest.raises(ModelError, match=IMPOSTORS[kind][1]):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "model-1.safetensors", "model.gguf"])
@pytest.mark.parametrize("kind", ["pointer", "page", "fifo", "folder"])
def test_weights_that_are_none(tmp_path: Path, kind: str, name: str) -> None:
    if name != "model.gguf":
        (tmp_path / "config.json").write_text("{}")
    if name == "model-1.safetensors":
        index = {"weight_map": {"a": name}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    IMPOSTORS[kind][0](tmp_path / name)
    with pytest.raises(ModelError, match=f"{name} {IMPOSTORS[kind][1]}"):
        resolve_model(str(tmp_path))


def test_what_nests_deeply(whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole / "tokenizer.json", tmp_path)
    for source in (
        "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
        "{{ " + "-" * 50_000 + "1 }}",
        "{{ " + "[" * 50_000,
        "{% for x in y %}" * 30 + "{% endfor %}" * 30,  # a syntax error of Python's
        "{% if x %}" * 200 + "{% endif %}" * 200,
    ):
        with pytest.raises(ChatTemplateError, match="^is too large or nests too deeply$"):
            ChatTemplate({"default": source}, {})
    for text in ("[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000):
        (tmp_path / "tokenizer_config.json").write_text(text)
        with pytest.raises(ModelError, match="can't be read as JSON: it nests too deeply"):
            load_tokenizer(str(tmp_path))


def test_a_template_inside_json_has_the_limit_of_a_file(whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole / "tokenizer.json", tmp_path)
    config = {"chat_template": "a" * (TEMPLATE_BYTES + 1)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    source = load_tokenizer(str(tmp_path)).chat_template
    assert source is not None
    with pytest.raises(ChatTemplateError, match="has 1048577 characters; the limit for a template"):
        ChatTemplate(source.texts, source.special_tokens)


def test_nobody_else_reads_files_of_a_model() -> None:
    package = Path(minisgl.__file__).parent
    readers = re.compile(
        r"read_text\(\)|read_text\(enc|read_bytes\(|json\.load\(|[ .]open\(|from_file\("
    )
    for room in ("model_files", "tokenizer", "text", "server", "rank", "offline", "engine"):
        for file in (package / room).rglob("*.py"):
            # Of these, the first is the reader, and the others read what the user or the package
            # has, not a model.
            if file.name not in (
                "side_files.py",
                "default_model.py",
                "cores.py",
                "nodes.py",
                "ray_cluster.py",
                "addresses.py",
                "web_pages.py",
            ):
                assert readers.findall(file.read_text()) == [], file


def test_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"\xef\xbb\xbf" + '{"a": "é"}'.encode())
    assert read_json(file) == {"a": "é"}
    assert read_text(file, 100) == '{"a": "é"}'
    (tmp_path / "link").symlink_to(file)
    assert read_file(tmp_path / "link", 100) == file.read_bytes()
    assert read_file(file, len(file.read_bytes())) == file.read_bytes()
    with pytest.raises(ModelError, match="file has 14 bytes; the limit for such a file is 13"):
        read_file(file, 13)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent")
    with pytest.raises(ModelError, match=r"/status has 11 bytes; the limit"):
        read_file(Path("/proc/self/status"), 10)  # its size is 0, they say
    descriptor, silent = os.pipe2(os.O_NONBLOCK)
    with monkeypatch.context() as patch:  # /proc/kmsg, which not everybody may open, is such a file
        patch.setattr("stat.S_ISREG", lambda mode: True)
        assert read_file(Path(f"/proc/self/fd/{descriptor}"), 100) == b""
    os.close(descriptor)
    os.close(silent)
    file.write_bytes(b"\xff{}")
    with pytest.raises(ModelError, match=r"file is no UTF-8 text"):
        read_json(file)
    file.write_text("[1]")
    with pytest.raises(ModelError, match="must hold a JSON object"):
        read_json(file)
    assert JSON_BYTES < TOKENIZER_BYTES
