"""The files beside a model's weights: JSON, chat templates, tokenizers. They come from whoever made
the model, so nothing about them is believed: only regular files up to a size are read, and what
lies there in place of a file is named for what it is.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from minisgl.model_files.files import ModelError

JSON_BYTES = 16 << 20  # as in cpp/io/json_text.h; configurations have up to some 100 kB
INDEX_BYTES = 100 << 20  # as in cpp/io/safetensors_source.cpp; a line per tensor
TOKENIZER_BYTES = 64 << 20  # 262,144 tokens with their merges take 33 MB
TEMPLATE_BYTES = 1 << 20  # the longest templates have some 30 kB

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_HTML_BEGINNINGS = (b"<!doctype html", b"<html")


def open_file(path: Path) -> BinaryIO:
    """The file, if it is a regular one; nothing else is waited for or read. ModelError where it is
    something else; OSError, FileNotFoundError among them.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ModelError(f"{path} is {_kind(mode)}, not a regular file.")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: Path, max_bytes: int) -> bytes:
    """All of a regular file. FileNotFoundError where there is none; else ModelError: it can't be
    read, is larger, or is a Git LFS pointer or an HTML page.
    """
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            # None is what a file of the kernel's gives that has nothing to say now.
            content = b"" if size > max_bytes else file.read(max_bytes + 1) or b""
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}.") from error
    if (size := max(size, len(content))) > max_bytes:
        raise ModelError(f"{path} has {size} bytes; the limit for such a file is {max_bytes}.")
    if other := stands_in(content):
        raise ModelError(f"{path} is {other}.")
    return content


def read_text(path: Path, max_bytes: int) -> str:
    """The same as text; a byte order mark is no part of it."""
    try:
        return read_file(path, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is no UTF-8 text: {error}.") from error


def read_json(path: Path, max_bytes: int = JSON_BYTES) -> dict[str, Any]:
    """A JSON object. FileNotFoundError where there is no such file, else ModelError."""
    text = read_text(path, max_bytes)
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half of a pair of such escapes is no text: nobody can use it
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        raise ModelError(f"{path} can't be read as JSON: {error}.") from error
    except RecursionError as error:
        raise ModelError(f"{path} can't be read as JSON: it nests too deeply.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object.")
    return value


def stands_in(beginning: bytes) -> str:
    """What a file is that a download left in place of the one that was meant, by its first bytes:
    to follow "is"; "" for any other.
    """
    if beginning.startswith(_LFS_POINTER):
        return "a Git LFS pointer, not the file itself: `git lfs pull` fetches that"
    if beginning[:100].lstrip().lower().startswith(_HTML_BEGINNINGS):
        return "an HTML page, not the file itself: download that again, logged in if need be"
    return ""


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")
