"""Random small models in transformers' format, their logits by transformers, and ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from minisgl._native import Model

VOCAB_SIZE = 160
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
FAMILIES: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    sizes = dict(SIZES)
    if family == "qwen3":
        sizes["head_dim"] = 32  # more than hidden_size / num_attention_heads, as in the real ones
    if family == "mistral":
        sizes["sliding_window"] = None
    return FAMILIES[family](**{**sizes, **changes})


def save_random_model(
    config: PreTrainedConfig, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """Weights large enough that every part of the model moves the logits; norms and biases too."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
            else:
                parameter.normal_(0.0, 1.5 / parameter.shape[-1] ** 0.5)
    model.to(dtype).save_pretrained(folder)
    return folder


def token_ids(count: int, vocab_size: int = VOCAB_SIZE, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab_size, count).tolist()


def transformers_logits(
    folder: Path,
    ids: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    attention: str = "eager",
) -> np.ndarray:
    """f32 [len(ids), vocab]: the folder's weights, computed in `dtype` whatever they are stored
    in. `attention`: a name that transformers knows.
    """
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention
    ).to(device)
    with torch.inference_mode():
        tokens = torch.tensor([list(ids)], device=device)
        logits: np.ndarray = model(tokens).logits[0].float().cpu().numpy()
    return logits


def transformers_hidden(folder: Path, ids: Sequence[int], device: str = "cpu") -> np.ndarray:
    """f32 [len(ids), hidden_size]: what the model's head reads."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device)
    with torch.inference_mode():
        tokens = torch.tensor([list(ids)], device=device)
        states: np.ndarray = model(tokens).last_hidden_state[0].cpu().numpy()
    return states


def normalized(vector: np.ndarray) -> np.ndarray:
    """The vector with length 1."""
    one: np.ndarray = vector / np.linalg.norm(vector)
    return one


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference over the largest logit."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def rms_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Root mean square of the difference over that of the logits: for errors that are noise."""
    assert ours.shape == theirs.shape
    return float(np.sqrt(np.square(ours - theirs).mean() / np.square(theirs).mean()))


def assert_chunks_agree(model: Model, ids: list[int], prefill: np.ndarray) -> None:
    """Chunked prefill and decode one by one give the bits of `prefill`."""
    count = len(ids)
    for chunks in ([count - 1, 1], [7] * (count // 7) + [count % 7 or 7], [1] * count):
        if sum(chunks) == count:
            np.testing.assert_array_equal(model.forward(ids, chunk_sizes=chunks), prefill)


def check_against_transformers(
    folder: Path, ids: list[int], tolerance: float, num_ranks: int = 1
) -> None:
    model = Model(str(folder), page_size=4, max_tokens=len(ids), num_ranks=num_ranks)
    ours = model.forward(ids)
    assert relative_error(ours, transformers_logits(folder, ids)) < tolerance
    assert_chunks_agree(model, ids, ours)
