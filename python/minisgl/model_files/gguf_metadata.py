"""Reads the metadata of a GGUF file (versions 2 and 3); no length is believed unchecked."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from minisgl.model_files.files import ModelError
from minisgl.model_files.gguf_parts import first_part
from minisgl.model_files.side_files import open_file

_MAX_KEYS = 1 << 16
_MAX_KEY_BYTES = 1 << 16
# In all: a vocabulary of 262,144 tokens has 1.3 million strings and numbers in some 15 MB.
_MAX_BYTES = 64 << 20
_MAX_ITEMS = 1 << 23
_MAX_DEPTH = 4  # arrays of arrays

_STRING, _ARRAY = 8, 9
_SCALARS = {
    type_id: struct.Struct("<" + code)
    for type_id, code in {
        0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
    }.items()
}  # fmt: skip
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

Metadata = dict[str, Any]


def read_gguf_metadata(path: Path) -> Metadata:
    """Key -> value; arrays are lists. Of a model in parts, the first part's. ModelError names the
    file and what is wrong in it.
    """
    path = first_part(path)
    try:
        with open_file(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse_gguf_metadata(data)
    except (OSError, ValueError) as error:  # mmap of an empty file is a ValueError
        raise ModelError(f"{path} can't be read as GGUF: {error}.") from error


def parse_gguf_metadata(data: bytes | mmap.mmap) -> Metadata:
    """The same for the bytes of a file, or the first of them. Raises ValueError."""
    return _Reader(data).read()


class _Reader:
    """A cursor over the file. Raises ValueError."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data
        self._size = len(data)
        self._end = min(self._size, _MAX_BYTES)
        self._position = 0
        self._items = 0

    def read(self) -> Metadata:
        if self._take(4) != b"GGUF":
            raise ValueError("it doesn't begin with GGUF")
        version = self._u32()
        if version not in (2, 3):
            raise ValueError(f"version {version} is not supported (2 and 3 are)")
        self._u64()  # number of tensors
        num_keys = self._u64()
        if num_keys > _MAX_KEYS:
            raise ValueError(f"it has too many metadata keys ({num_keys}; limit {_MAX_KEYS})")
        metadata: Metadata = {}
        for _ in range(num_keys):
            key = self._string(_MAX_KEY_BYTES)
            if key in metadata:
                raise ValueError(f"the metadata key {key!r} appears twice")
            metadata[key] = self._value(self._u32(), 0)
        return metadata

    def _take(self, count: int) -> bytes:
        start = self._position
        if count > self._end - start:
            raise self._past_end(f"{count} bytes should follow byte {start}")
        self._position = start + count
        return self._data[start : start + count]

    def _past_end(self, what: str) -> ValueError:
        if self._end < self._size:
            return ValueError(f"its metadata has more than {_MAX_BYTES} bytes: {what}")
        return ValueError(f"it ends at byte {self._size}, but {what}")

    def _u32(self) -> int:
        value: int = _U32.unpack(self._take(4))[0]
        return value

    def _u64(self) -> int:
        value: int = _U64.unpack(self._take(8))[0]
        return value

    def _string(self, max_bytes: int | None = None) -> str:
        length = self._u64()
        if max_bytes is not None and length > max_bytes:
            raise ValueError(f"a key is too long ({length} bytes; limit {max_bytes})")
        return self._take(length).decode()

    def _value(self, type_id: int, depth: int) -> Any:
        if type_id == _STRING:
            return self._string()
        if type_id == _ARRAY:
            return self._array(depth)
        scalar = _SCALARS.get(type_id)
        if scalar is None:
            raise ValueError(f"metadata type {type_id} at byte {self._position} is unknown")
        return scalar.unpack(self._take(scalar.size))[0]

    def _array(self, depth: int) -> list[Any]:
        item_type, count = self._u32(), self._u64()
        self._items += count
        if self._items > _MAX_ITEMS or depth >= _MAX_DEPTH:
            raise ValueError(
                f"its arrays are too large ({self._items} items, {depth + 1} deep; limits "
                f"{_MAX_ITEMS} and {_MAX_DEPTH})"
            )
        if item_type == _STRING:
            return self._strings(count)
        if scalar := _SCALARS.get(item_type):
            data = self._take(count * scalar.size)
            return [item[0] for item in scalar.iter_unpack(data)]
        return [self._value(item_type, depth + 1) for _ in range(count)]

    def _strings(self, count: int) -> list[str]:
        # The vocabulary and the merges: 100,000 strings and more, so the loop calls little.
        data, last, position = self._data, self._end, self._position
        unpack = _U64.unpack_from
        strings: list[str] = []
        for _ in range(count):
            if position + 8 > last:
                raise self._past_end(f"an array of {count} strings goes on")
            end = position + 8 + unpack(data, position)[0]
            if end > last:
                raise self._past_end(f"an array of {count} strings goes on")
            strings.append(data[position + 8 : end].decode())
            position = end
        self._position = position
        return strings
