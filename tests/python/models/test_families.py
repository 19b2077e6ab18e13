"""Logits of random small models of each family against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from minisgl._native import Model
from tests.python.models.tiny_models import (
    FAMILIES,
    check_against_transformers,
    save_random_model,
    tiny_config,
    token_ids,
)

F32_TOLERANCE = 1e-4
BF16_TOLERANCE = 2e-2


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_f32(family: str, tied: bool, tmp_path: Path) -> None:
    save_random_model(tiny_config(family, tie_word_embeddings=tied), tmp_path)
    check_against_transformers(tmp_path, token_ids(75), F32_TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    save_random_model(tiny_config(family), tmp_path, dtype)
    check_against_transformers(tmp_path, token_ids(50), BF16_TOLERANCE)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (8, 1), (1, 1)])
def test_head_groups(heads: int, kv_heads: int, tmp_path: Path) -> None:
    config = tiny_config(
        "llama", hidden_size=16 * heads, num_attention_heads=heads, num_key_value_heads=kv_heads
    )
    save_random_model(config, tmp_path)
    check_against_transformers(tmp_path, token_ids(40), F32_TOLERANCE)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"sliding_window": 9}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
        (
            "qwen3",
            {
                "use_sliding_window": True,
                "sliding_window": 9,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
        ),
    ],
)
def test_sliding_window(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    save_random_model(tiny_config(family, **changes), tmp_path)
    check_against_transformers(tmp_path, token_ids(60), F32_TOLERANCE)


def test_window_of_each_layer(tmp_path: Path) -> None:
    changes = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}
    save_random_model(tiny_config("qwen2", **changes), tmp_path)
    assert Model(str(tmp_path)).info["window"] == [0, 0, 9]


def test_llama_with_biases(tmp_path: Path) -> None:
    save_random_model(tiny_config("llama", attention_bias=True, mlp_bias=True), tmp_path)
    check_against_transformers(tmp_path, token_ids(40), F32_TOLERANCE)


def test_qwen3_with_biases(tmp_path: Path) -> None:
    save_random_model(tiny_config("qwen3", attention_bias=True), tmp_path)
    check_against_transformers(tmp_path, token_ids(40), F32_TOLERANCE)


def test_sizes_that_are_no_multiples_of_a_tile(tmp_path: Path) -> None:
    config = tiny_config("llama", vocab_size=151, hidden_size=52, intermediate_size=77, head_dim=24)
    save_random_model(config, tmp_path)
    check_against_transformers(tmp_path, token_ids(41, vocab_size=151), F32_TOLERANCE)


def test_sharded_weights(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    save_random_model(tiny_config("llama"), whole)
    model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    model.save_pretrained(sharded, max_shard_size="100KB")
    assert (sharded / "model.safetensors.index.json").exists()
    ids = token_ids(20)
    assert (Model(str(sharded)).forward(ids) == Model(str(whole)).forward(ids)).all()


def test_threads_do_not_change_bits(tmp_path: Path) -> None:
    save_random_model(tiny_config("qwen3"), tmp_path)
    ids = token_ids(60)
    one = Model(str(tmp_path), num_threads=1).forward(ids)
    assert (Model(str(tmp_path), num_threads=2).forward(ids) == one).all()
