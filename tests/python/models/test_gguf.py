"""GGUF files of every block format and family against the same weights dequantised by gguf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoModelForCausalLM

from minisgl._native import InputError, Model
from tests.python.models.gguf_files import write_gguf
from tests.python.models.tiny_models import (
    FAMILIES,
    assert_chunks_agree,
    relative_error,
    rms_error,
    save_random_model,
    tiny_config,
    token_ids,
    transformers_logits,
)
from tests.reference.dequantize_gguf import dequantize_gguf

SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
FLOATS = (Type.F32, Type.F16, Type.BF16)
FLOAT_TOLERANCE = 1e-4
INT8_TOLERANCE = 5e-2  # rms: activations are rounded to 8 bits in blocks of 32


@pytest.mark.parametrize(
    "quantization",
    [
        *FLOATS,
        *(Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.IQ4_NL, Type.MXFP4),
        *(Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_XS),
    ],
    ids=lambda quantization: quantization.name,
)
def test_block_formats(quantization: Type, tmp_path: Path) -> None:
    original, file, dequantized = tmp_path / "hf", tmp_path / "m.gguf", tmp_path / "f32"
    save_random_model(tiny_config("llama", **SIZES), original)
    write_gguf(original, file, quantization)
    dequantize_gguf(file, dequantized)

    ids = token_ids(48)
    model = Model(str(file), kv_dtype="f32", max_tokens=64)
    assert model.info["weight_dtype"] == quantization.name.lower()
    ours = model.forward(ids)
    reference = transformers_logits(dequantized, ids)
    if quantization in FLOATS:
        assert relative_error(ours, reference) < FLOAT_TOLERANCE
    else:
        assert rms_error(ours, reference) < INT8_TOLERANCE
    assert_chunks_agree(model, ids, ours)
    assert relative_error(Model(str(dequantized)).forward(ids), reference) < 1e-4


# Which layers have a window or no rope isn't in the file: seven layers have every kind.
PATTERNS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 9},
    "smollm3": {"no_rope_layers": None, "num_hidden_layers": 7},
    "olmo3": {"layer_types": None, "num_hidden_layers": 7},
    "cohere2": {"layer_types": None, "num_hidden_layers": 7},
    "gemma2": {"layer_types": None, "num_hidden_layers": 7, "query_pre_attn_scalar": 32},
    "gemma3_text": {"layer_types": None, "num_hidden_layers": 7, "query_pre_attn_scalar": 32},
    "qwen2_moe": {"mlp_only_layers": []},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f not in ("ministral", "ministral3", "glm", "glm4_moe")]
)
def test_families(family: str, tied: bool, tmp_path: Path) -> None:
    """In f32 a GGUF file gives the bits that the folder gives: names, rows and settings agree."""
    changes: dict[str, Any] = {"tie_word_embeddings": tied, **PATTERNS.get(family, {})}
    original, file = tmp_path / "hf", tmp_path / "m.gguf"
    save_random_model(tiny_config(family, **changes), original)
    write_gguf(original, file, Type.F32)
    ids = token_ids(40)
    np.testing.assert_array_equal(Model(str(file)).forward(ids), Model(str(original)).forward(ids))


def test_llama_biases_are_reordered_too(tmp_path: Path) -> None:
    original, file = tmp_path / "hf", tmp_path / "m.gguf"
    save_random_model(tiny_config("llama", attention_bias=True, mlp_bias=True), original)
    write_gguf(original, file, Type.F32)
    ids = token_ids(40)
    np.testing.assert_array_equal(Model(str(file)).forward(ids), Model(str(original)).forward(ids))


@pytest.mark.parametrize(
    ("rope", "metadata"),
    [
        (
            {"rope_type": "linear", "factor": 4.0},
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 32,
            },
        ),
    ],
    ids=["linear", "yarn"],
)
def test_rope_scaling(rope: dict[str, Any], metadata: dict[str, Any], tmp_path: Path) -> None:
    original, file = tmp_path / "hf", tmp_path / "m.gguf"
    config = tiny_config("llama", rope_parameters={**rope, "rope_theta": 10000.0})
    save_random_model(config, original)
    write_gguf(original, file, Type.F32, metadata=metadata)
    ids = token_ids(100)
    np.testing.assert_array_equal(Model(str(file)).forward(ids), Model(str(original)).forward(ids))


def test_llama3_scaling_as_frequency_factors(tmp_path: Path) -> None:
    original, file = tmp_path / "hf", tmp_path / "m.gguf"
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    save_random_model(tiny_config("llama", rope_parameters=llama3), original)
    rotary = AutoModelForCausalLM.from_pretrained(original).model.rotary_emb
    plain = 1.0 / 10000.0 ** (torch.arange(0, 16, 2) / 16)
    factors = (plain / rotary.inv_freq).numpy().astype(np.float32)
    write_gguf(original, file, Type.F32, extra={"rope_freqs.weight": factors})
    ids = token_ids(100)
    expected = transformers_logits(original, ids)
    assert relative_error(Model(str(file)).forward(ids), expected) < 1e-4


@pytest.mark.parametrize("quantization", [Type.IQ3_S, Type.TQ2_0])
def test_unsupported_block_format(quantization: Type, tmp_path: Path) -> None:
    original, file = tmp_path / "hf", tmp_path / "m.gguf"
    save_random_model(tiny_config("llama"), original)
    write_gguf(original, file, Type.Q8_0)
    content = bytearray(file.read_bytes())
    name = b"blk.0.attn_q.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8  # behind the number and sizes of dimensions
    content[place] = int(quantization)
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"has type {quantization.name}, which is not supported; "):
        Model(str(file))


@pytest.mark.parametrize("keep", [3, 24, 600, -1])
def test_truncated_file(keep: int, tmp_path: Path) -> None:
    original, file = tmp_path / "hf", tmp_path / "m.gguf"
    save_random_model(tiny_config("llama"), original)
    write_gguf(original, file, Type.Q8_0)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match="truncated or damaged"):
        Model(str(file))
