"""Random small models in transformers' format, their logits by transformers, and ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    Glm4MoeConfig,
    GlmConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeConfig,
    GraniteMoeSharedConfig,
    LlamaConfig,
    Ministral3Config,
    MinistralConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoeConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
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
WITH_EXPERTS: dict[str, type[PreTrainedConfig]] = {
    "qwen2_moe": Qwen2MoeConfig,
    "qwen3_moe": Qwen3MoeConfig,
    "mixtral": MixtralConfig,
    "olmoe": OlmoeConfig,
    "granitemoe": GraniteMoeConfig,
    "granitemoeshared": GraniteMoeSharedConfig,
    "gpt_oss": GptOssConfig,
    "glm4_moe": Glm4MoeConfig,
}
FAMILIES: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "phi3": Phi3Config,
    "granite": GraniteConfig,
    "olmo2": Olmo2Config,
    "olmo3": Olmo3Config,
    "smollm3": SmolLM3Config,
    "ministral": MinistralConfig,
    "ministral3": Ministral3Config,
    "glm": GlmConfig,
    "glm4": Glm4Config,
    "cohere": CohereConfig,
    "cohere2": Cohere2Config,
    "gemma": GemmaConfig,
    "gemma2": Gemma2Config,
    "gemma3_text": Gemma3TextConfig,
    **WITH_EXPERTS,
}
MIXED = {
    "sliding_window": 9,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
LONGROPE = {
    "rope_type": "longrope",
    "partial_rotary_factor": 0.75,
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.0, 1.1, 1.2, 1.5, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0],
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 3}
OWN_SIZE = {**EXPERTS, "moe_intermediate_size": 32}  # others' experts have intermediate_size
GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.2,
    "logits_scaling": 4.0,
}
# What makes a family more than Llama. Heads of Qwen3 and Gemma are larger than hidden_size over
# their number, as in the real ones.
SETTINGS: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 32},
    "mistral": {"sliding_window": None},
    "phi3": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64},
    "granite": GRANITE,
    "olmo3": {
        **MIXED,
        "rope_parameters": {
            "full_attention": YARN,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "ministral": {**MIXED, "head_dim": 16},
    "ministral3": {
        "head_dim": 32,
        "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.3},
    },
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {**MIXED, "logit_scale": 0.25},
    "gemma": {"head_dim": 32},
    "gemma2": {
        **MIXED,
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        **MIXED,
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "qwen2_moe": {
        **OWN_SIZE,
        "num_experts": 8,  # which has no other name here
        "mlp_only_layers": [1],
        "shared_expert_intermediate_size": 48,
    },
    "qwen3_moe": {**OWN_SIZE, "head_dim": 32, "norm_topk_prob": True},
    "mixtral": EXPERTS,
    "olmoe": EXPERTS,
    "granitemoe": {**EXPERTS, **GRANITE},
    "granitemoeshared": {**EXPERTS, **GRANITE, "shared_intermediate_size": 48},
    "gpt_oss": {
        **EXPERTS,
        "head_dim": 16,
        "sliding_window": 9,
        "rope_parameters": {**YARN, "truncate": False},
    },
    "glm4_moe": {
        **OWN_SIZE,
        "head_dim": 16,
        "use_qk_norm": True,
        "n_shared_experts": 2,
        "routed_scaling_factor": 1.5,
    },
}


def all_chosen(family: str) -> dict[str, Any]:
    """What keeps rounding from changing which experts are chosen, where two are nearly alike."""
    return {"num_experts_per_tok": 8} if family in WITH_EXPERTS else {}


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    special = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    return FAMILIES[family](**{**SIZES, **special, **SETTINGS.get(family, {}), **changes})


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
                if config.model_type.startswith("gemma"):
                    parameter.sub_(1.0)  # as they are stored
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
            else:
                parameter.normal_(0.0, 1.5 / parameter.shape[-1] ** 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0.0, 0.3)
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
    prepare: Callable[[torch.nn.Module], None] | None = None,
) -> np.ndarray:
    """f32 [len(ids), vocab]: the folder's weights, computed in `dtype` whatever they are stored
    in. `attention`: a name that transformers knows. `prepare` is given the model before it runs.
    """
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention
    ).to(device)
    if prepare is not None:
        prepare(model)
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
    folder: Path, ids: list[int], tolerance: float, num_ranks: int = 1, kv_dtype: str = "auto"
) -> None:
    model = Model(
        str(folder), page_size=4, max_tokens=len(ids), num_ranks=num_ranks, kv_dtype=kv_dtype
    )
    ours = model.forward(ids)
    assert relative_error(ours, transformers_logits(folder, ids)) < tolerance
    assert_chunks_agree(model, ids, ours)
