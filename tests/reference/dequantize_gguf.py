"""GGUF file -> Hugging Face folder with f32 weights, through the gguf package: slow and obvious.

    python tests/reference/dequantize_gguf.py model.gguf folder

Knows the architectures llama, qwen2, qwen3, qwen3moe and gemma3, without rope scaling.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma3": Gemma3TextConfig,
    "qwen3moe": Qwen3MoeConfig,
}
MODEL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
EXPERT_NAMES = {
    **LAYER_NAMES,
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
GEMMA_NAMES = {
    **LAYER_NAMES,
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


OTHER_NAMES = {"gemma3": GEMMA_NAMES, "qwen3moe": EXPERT_NAMES}


def huggingface_name(name: str, architecture: str) -> str:
    stem, ending = name.rsplit(".", 1)
    if stem.startswith("blk."):
        _, layer, part = stem.split(".")
        names = OTHER_NAMES.get(architecture, LAYER_NAMES)
        return f"model.layers.{layer}.{names[part]}.{ending}"
    return f"{MODEL_NAMES[stem]}.{ending}"


def interleaved_to_halves(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of each head from pairs (2i, 2i + 1) to pairs (i, i + head_dim / 2)."""
    paired = rows.reshape(num_heads, rows.shape[0] // num_heads // 2, 2, *rows.shape[1:])
    return paired.swapaxes(1, 2).reshape(rows.shape)


def read_config(reader: GGUFReader) -> tuple[str, PreTrainedConfig]:
    architecture = reader.fields["general.architecture"].contents()

    def get(key: str, fallback: Any = None) -> Any:
        field = reader.fields.get(f"{architecture}.{key}")
        return fallback if field is None else field.contents()

    if get("rope.scaling.type", "none") != "none":
        raise ValueError("rope scaling is not handled here")
    names = {tensor.name: tensor for tensor in reader.tensors}
    own: dict[str, Any] = {}
    rope = {"rope_type": "default", "rope_theta": get("rope.freq_base", 10000.0)}
    if architecture == "gemma3":
        own["sliding_window"] = get("attention.sliding_window")
        own["query_pre_attn_scalar"] = get("attention.key_length")
        local = {"rope_type": "default", "rope_theta": 10000.0}
        own["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    else:
        own["rope_parameters"] = rope
    if architecture == "qwen3moe":
        own["num_local_experts"] = get("expert_count")
        own["num_experts_per_tok"] = get("expert_used_count")
        own["moe_intermediate_size"] = get("expert_feed_forward_length")
        own["norm_topk_prob"] = True
    heads = get("attention.head_count")
    eos = reader.fields.get("tokenizer.ggml.eos_token_id")
    return architecture, CONFIGS[architecture](
        vocab_size=int(names["token_embd.weight"].shape[1]),
        hidden_size=get("embedding_length"),
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=get("attention.head_count_kv", heads),
        head_dim=get("attention.key_length", get("embedding_length") // heads),
        max_position_embeddings=get("context_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        tie_word_embeddings="output.weight" not in names,
        bos_token_id=None,
        eos_token_id=None if eos is None else eos.contents(),
        **own,
    )


def merge_experts(weights: dict[str, torch.Tensor]) -> None:
    """Gate and up of all experts of a layer as transformers has them: one matrix each."""
    for name in list(weights):
        stem, _, ending = name.rpartition("mlp.experts.")
        if ending == "gate_proj.weight":
            parts = [
                weights.pop(f"{stem}mlp.experts.{part}_proj.weight") for part in ("gate", "up")
            ]
            weights[f"{stem}mlp.experts.gate_up_proj"] = torch.cat(parts, dim=1)
        elif ending == "down_proj.weight":
            weights[f"{stem}mlp.experts.down_proj"] = weights.pop(name)


def dequantize_gguf(file: Path, folder: Path) -> None:
    """Writes config.json and model.safetensors."""
    reader = GGUFReader(file)
    architecture, config = read_config(reader)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        part = tensor.name.split(".")[-2]
        if architecture == "llama" and part in heads:
            values = interleaved_to_halves(values, heads[part])
        if architecture == "gemma3" and "norm" in part:
            values = values - 1  # as Hugging Face's files have them
        name = huggingface_name(tensor.name, architecture)
        weights[name] = torch.from_numpy(np.array(values))
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    merge_experts(weights)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(weights, assign=True, strict=True)
    if config.tie_word_embeddings:
        model.tie_weights()
    model.save_pretrained(folder)


if __name__ == "__main__":
    dequantize_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
