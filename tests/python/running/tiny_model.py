"""A random model that a real server can serve: real weights, real tokenizer, one step in a
millisecond.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.python.models.fp8_checkpoints import write_fp8
from tests.python.models.tiny_models import save_random_model, tiny_config
from tests.python.server.byte_tokenizer import END, TEMPLATE, VOCAB_SIZE, make_backend


def make_tiny_model(
    folder: Path,
    max_position: int = 16384,
    family: str = "llama",
    *,
    seed: int = 0,
    template: str = TEMPLATE,
    vocab_size: int = VOCAB_SIZE,
    **fields: Any,
) -> Path:
    """A folder with a model of 3 layers over bytes, and a chat template. The weights are drawn with
    the seed; `fields` are the configuration's.
    """
    config = tiny_config(
        family,
        vocab_size=vocab_size,
        max_position_embeddings=max_position,
        eos_token_id=END,
        **fields,
    )
    save_random_model(config, folder, seed=seed)
    make_backend().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<end>", "chat_template": template})
    )
    return folder


def make_model_of(kind: str, folder: Path) -> Path:
    """A tiny model of a family, or "fp8": Llama with linear layers in FP8."""
    if kind != "fp8":
        return make_tiny_model(folder, family=kind)
    plain = make_tiny_model(folder / "plain")
    write_fp8(plain, folder / "fp8", "channel")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(plain / name, folder / "fp8")
    return folder / "fp8"
