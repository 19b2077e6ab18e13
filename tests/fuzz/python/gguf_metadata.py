"""The reader of GGUF metadata that the tokenizer uses."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["minisgl"]):
    from minisgl.model_files.gguf_metadata import parse_gguf_metadata


def check(data: bytes) -> None:
    try:
        metadata = parse_gguf_metadata(data)
    except ValueError:
        return
    assert all(isinstance(key, str) for key in metadata)


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
