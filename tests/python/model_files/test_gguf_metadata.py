"""The GGUF reader: what the gguf package writes, and files that lie."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import pytest
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minisgl.model_files.files import ModelError
from minisgl.model_files.gguf_metadata import read_gguf_metadata


def sample(path: Path) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -7)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -30000)
    writer.add_uint32("u32", 4_000_000_000)
    writer.add_int32("i32", -5)
    writer.add_uint64("u64", 2**63)
    writer.add_int64("i64", -(2**62))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "Größe 中")
    writer.add_array("strings", ["a", "", "é"])
    writer.add_array("ints", [1, 2, 3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def header(num_keys: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, num_keys)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def read(tmp_path: Path, data: bytes) -> dict[str, object]:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return read_gguf_metadata(path)


def test_reads_every_type(tmp_path: Path) -> None:
    metadata = read_gguf_metadata(sample(tmp_path / "model.gguf"))
    assert metadata == {
        "general.architecture": "llama", "u8": 200, "i8": -7, "u16": 60000, "i16": -30000,
        "u32": 4_000_000_000, "i32": -5, "u64": 2**63, "i64": -(2**62), "f32": 0.5, "f64": 0.1,
        "yes": True, "text": "Größe 中", "strings": ["a", "", "é"], "ints": [1, 2, 3],
    }  # fmt: skip


def test_arrays_of_arrays(tmp_path: Path) -> None:
    inner = struct.pack("<IQ", 4, 2) + struct.pack("<II", 7, 8)
    data = header(1) + string(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) + inner
    assert read(tmp_path, data) == {"k": [[7, 8]]}


def test_a_file_cut_anywhere(tmp_path: Path) -> None:
    data = sample(tmp_path / "whole.gguf").read_bytes()
    end = data.rindex(struct.pack("<iii", 1, 2, 3)) + 12
    for size in range(end):
        with pytest.raises(ModelError, match=r"model\.gguf can't be read as GGUF"):
            read(tmp_path, data[:size])
    assert read(tmp_path, data[:end])["ints"] == [1, 2, 3]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(4, 500), flips=st.binary(min_size=1, max_size=8))
def test_damage_ends_in_an_error_or_other_values(
    tmp_path: Path, position: int, flips: bytes
) -> None:
    data = bytearray(sample(tmp_path / "whole.gguf").read_bytes())
    position %= len(data)
    data[position : position + len(flips)] = flips
    with contextlib.suppress(ModelError):  # anything else would be a traceback on the screen
        assert isinstance(read(tmp_path, bytes(data)), dict)


def test_metadata_has_a_size(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for value, message in (
        (struct.pack("<IQ", 8, 100 << 20), "its metadata has more than 67108864 bytes: 104857600"),
        (struct.pack("<IIQ", 9, 8, 10) + struct.pack("<Q", 100 << 20), "an array of 10 strings"),
        (struct.pack("<IIQ", 9, 7, 90 << 20), "its arrays are too large .94371840 items"),
    ):
        path.write_bytes(header(1) + string(b"k") + value)
        os.truncate(path, 1 << 30)  # a sparse file: the bytes are there
        with pytest.raises(ModelError, match=message):
            read_gguf_metadata(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "can't be read"),
        (b"GGML" + bytes(20), "doesn't begin with GGUF"),
        (header(0, version=1), "version 1 is not supported"),
        (header(2**40), "too many metadata keys .1099511627776; limit"),
        (header(1) + struct.pack("<Q", 2**60), "a key is too long .1152921504606846976 bytes"),
        (header(1) + string(b"k") + struct.pack("<I", 99), "metadata type 99"),
        (header(1) + string(b"k") + struct.pack("<IQ", 8, 2**63), "it ends at byte"),
        (header(1) + string(b"k") + struct.pack("<IIQ", 9, 8, 2**60), "its arrays are too large"),
        (header(1) + string(b"k") + struct.pack("<IIQ", 9, 8, 2**20), "it ends at byte"),
        (header(1) + string(b"k") + struct.pack("<IIQ", 9, 4, 2**20), "it ends at byte"),
        (header(1) + string(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9, "deep"),
        (header(1) + string(b"\xff"), "codec can't decode"),
        (header(2) + (string(b"k") + struct.pack("<IB", 0, 1)) * 2, "'k' appears twice"),
    ],
)
def test_lies(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(tmp_path, data)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        read_gguf_metadata(tmp_path / "none.gguf")
