"""The sizes of a model that bound its requests, by what its files say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from minisgl.model_files.gguf_metadata import read_gguf_metadata
from minisgl.model_files.side_files import read_json


class ModelSizes(msgspec.Struct, frozen=True):
    """None: the files don't say."""

    vocab_size: int | None
    max_position: int | None  # tokens of the longest request


def model_sizes(path: str) -> ModelSizes:
    """Those of a folder or a .gguf file. ModelError."""
    if not Path(path).is_dir():
        metadata = read_gguf_metadata(Path(path))
        tokens = metadata.get("tokenizer.ggml.tokens")
        context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
        return ModelSizes(len(tokens) if isinstance(tokens, list) else None, _whole(context))
    config: dict[str, Any] = read_json(Path(path) / "config.json")
    inner = config.get("text_config")  # of a model that sees, too
    config = {**config, **(inner if isinstance(inner, dict) else {})}
    return ModelSizes(
        _whole(config.get("vocab_size")), _whole(config.get("max_position_embeddings"))
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
