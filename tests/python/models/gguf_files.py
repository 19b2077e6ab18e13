"""Small GGUF files, written with the gguf package from models in transformers' format."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoModelForCausalLM, PreTrainedConfig

from tests.reference.dequantize_gguf import LAYER_NAMES, MODEL_NAMES

# Formats that the gguf package reads but doesn't write: where the f16 scale is in a block, and the
# f16 scale of the minimums as a multiple of it, which centres the values.
UNWRITTEN: dict[Type, tuple[int, float | None]] = {
    Type.Q2_K: (80, 1.5),
    Type.Q3_K: (108, None),
    Type.Q4_K: (0, 7.5),
    Type.Q5_K: (0, 15.5),
    Type.Q6_K: (208, None),
    Type.IQ4_NL: (0, None),
    Type.IQ4_XS: (0, None),
}
# What makes weights of about the same size of a format's integers.
SCALES = {Type.Q2_K: 16.0, Type.Q3_K: 1.0, Type.Q5_K: 0.5, Type.Q6_K: 1 / 16, Type.IQ4_XS: 1 / 16}


ARCHITECTURES = {
    "mistral": "llama",
    "olmo3": "olmo2",
    "cohere": "command-r",
    "gemma3_text": "gemma3",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "mixtral": "llama",
    "granitemoeshared": "granitemoe",
    "gpt_oss": "gpt-oss",
}
FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
NORMS_BEHIND = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}
GEMMA_NORMS = {**NORMS_BEHIND, "ffn_norm": "pre_feedforward_layernorm"}
# Names of an architecture that mean another tensor than in most.
OWN_NAMES: dict[str, dict[str, str]] = {
    "phi3": FUSED,
    "glm4": {
        **FUSED,
        "post_attention_norm": "post_self_attn_layernorm",
        "post_ffw_norm": "post_mlp_layernorm",
    },
    "olmo2": NORMS_BEHIND,
    "gemma2": GEMMA_NORMS,
    "gemma3": GEMMA_NORMS,
    "gpt-oss": {
        "post_attention_norm": "post_attention_layernorm",
        "attn_sinks": "self_attn.sinks",
    },
}
INTERLEAVED = ("llama", "granite", "granitemoe", "smollm3")


def gguf_name(name: str, architecture: str) -> str:
    stem, ending = name.rsplit(".", 1)
    for ours, theirs in MODEL_NAMES.items():
        if stem == theirs:
            return f"{ours}.{ending}"
    _, _, layer, part = stem.split(".", 3)
    names = {**LAYER_NAMES, **EXPERTS, **OWN_NAMES.get(architecture, {})}
    if architecture == "gpt-oss":
        del names["ffn_norm"]
    return next(f"blk.{layer}.{o}.{ending}" for o, theirs in names.items() if theirs == part)


def as_gguf_has_them(name: str, values: np.ndarray, family: str) -> dict[str, np.ndarray]:
    """A tensor of transformers under Hugging Face's names as GGUF files have it: gate and up of
    experts as tensors of their own, [experts, out, in].
    """
    name = name.replace("mlp.router.", "mlp.gate.").replace("block_sparse_moe.router", "mlp.gate")
    name = name.replace("block_sparse_moe.", "mlp.")
    for merged in ("mlp.experts.gate_up_proj", "shared_mlp.input_linear.weight"):
        if not name.removesuffix("_bias").endswith(merged):
            continue
        axis = -1 if family == "gpt_oss" else -2
        if family == "gpt_oss":
            parts = [values[..., ::2], values[..., 1::2]]
        else:
            parts = np.split(values, 2, axis)
        place = name[: name.index(merged)] + (
            "mlp.experts." if "experts" in merged else "mlp.shared_expert."
        )
        ending = "bias" if name.endswith("_bias") else "weight"
        return {
            f"{place}{own}.{ending}": turned(part, family)
            for own, part in zip(("gate_proj", "up_proj"), parts, strict=True)
        }
    name = name.replace("shared_mlp.output_linear", "mlp.shared_expert.down_proj")
    if name.endswith("experts.down_proj"):
        return {name + ".weight": turned(values, family)}
    if name.endswith("shared_expert_gate.weight"):
        return {name: values[0]}
    if name.endswith("sinks"):
        return {name + ".weight": values}
    return {name.replace("down_proj_bias", "down_proj.bias"): values}


def turned(values: np.ndarray, family: str) -> np.ndarray:
    """Matrices of gpt-oss are [in, out]."""
    return values.swapaxes(1, 2) if family == "gpt_oss" and values.ndim == 3 else values


def write_settings(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    """What a family has beside sizes, as the converters of llama.cpp write it."""
    family = config.model_type
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if family in ("cohere", "cohere2"):
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_logit_scale(config.logit_scale)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if hasattr(config, "num_experts_per_tok"):
        writer.add_expert_count(
            config.num_experts if family == "qwen2_moe" else config.num_local_experts
        )
        writer.add_expert_used_count(config.num_experts_per_tok)
        size = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
        writer.add_expert_feed_forward_length(size)
        for key in ("shared_expert_intermediate_size", "shared_intermediate_size"):
            if hasattr(config, key):
                writer.add_expert_shared_feed_forward_length(getattr(config, key))
    if family.startswith("granite"):
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if family == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    part = rope.get("partial_rotary_factor", 1.0)
    if part != 1.0:
        writer.add_rope_dimension_count(int(part * head_dim_of(config)))
    if family in ("olmo3", "gemma3_text", "gpt_oss") and rope["rope_type"] != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if "original_max_position_embeddings" in rope:
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        scale = config.max_position_embeddings / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors((1 + math.log(scale) / math.log(original)) ** 0.5)
        for kind in ("long", "short"):
            factors = np.array(rope[f"{kind}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{kind}.weight", factors)


def head_dim_of(config: PreTrainedConfig) -> int:
    dim = getattr(config, "head_dim", None)
    return int(dim or config.hidden_size // config.num_attention_heads)


def halves_to_interleaved(rows: np.ndarray, num_heads: int) -> np.ndarray:
    halves = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def random_blocks(
    shape: tuple[int, ...], quantization: Type, rng: np.random.Generator
) -> np.ndarray:
    """Blocks of random bits whose f16 scales are small enough for weights. uint8 [rows, bytes]."""
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
    count = shape[0] * shape[1] // block_size
    blocks = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    scale = rng.uniform(0.5e-3, 1e-3, (count, 1)) * SCALES.get(quantization, 1.0)
    place, minimum = UNWRITTEN[quantization]
    blocks[:, place : place + 2] = scale.astype(np.float16).view(np.uint8)
    if minimum is not None:
        blocks[:, place + 2 : place + 4] = (scale * minimum).astype(np.float16).view(np.uint8)
    return blocks.reshape(shape[0], -1)


def add_tensor(
    writer: gguf.GGUFWriter,
    name: str,
    values: np.ndarray,
    quantization: Type,
    rng: np.random.Generator,
) -> None:
    """Vectors, biases and routers stay f32."""
    values = np.ascontiguousarray(values)
    if values.ndim == 1 or name.endswith("bias") or "ffn_gate_inp" in name:
        writer.add_tensor(name, values)
    elif quantization in UNWRITTEN:
        rows = values.reshape(-1, values.shape[-1])
        blocks = random_blocks(rows.shape, quantization, rng).reshape(*values.shape[:-1], -1)
        writer.add_tensor(name, blocks, raw_dtype=quantization)
    else:
        data = gguf.quants.quantize(values, quantization)
        writer.add_tensor(name, data, raw_dtype=quantization)


def write_gguf(
    folder: Path,
    file: Path,
    quantization: Type,
    *,
    metadata: dict[str, float | int | str] | None = None,
    extra: dict[str, np.ndarray] | None = None,
    parts: dict[str, Type] | None = None,
) -> None:
    """`folder`'s model with its matrices in `quantization` (UNWRITTEN: random blocks), but those of
    `parts` ("v_proj") in another format, and `extra` tensors.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim_of(config))
    write_settings(writer, config)
    for key, value in (metadata or {}).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](f"{architecture}.{key}", value)  # type: ignore[operator]

    rng = np.random.default_rng(5)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        part = name.split(".")[-2]
        if architecture in INTERLEAVED and part in heads:
            values = halves_to_interleaved(values, heads[part])
        if architecture.startswith("gemma") and "norm" in part:
            values = values + 1
        chosen = (parts or {}).get(part, quantization)
        for own, one in as_gguf_has_them(name, values, config.model_type).items():
            add_tensor(writer, gguf_name(own, architecture), one, chosen, rng)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
