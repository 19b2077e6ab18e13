"""Random LoRA adapters of small models, as PEFT writes them, and models with them merged."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

# Layers of checkpoints that adapters change, by the ends of their names.
LINEARS = re.compile(
    r"\.(q_proj|k_proj|v_proj|o_proj|qkv_proj|gate_proj|up_proj|down_proj|gate_up_proj|w1|w2|w3)"
    r"\.weight$"
)
EXPERTS = re.compile(r"\.(gate_up_proj|down_proj|gate_up|down)(\.weight)?$")


def save_adapter(
    model: Path,
    folder: Path,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    seed: int = 0,
    only: str = "",
    dtype: torch.dtype = torch.float32,
    merged: Path | None = None,
    **config: Any,
) -> None:
    """An adapter of the model's linear layers whose names contain `only`, with rank and alpha by
    the config's patterns; `merged`: a folder for the model with the adapter in its weights.
    """
    random = torch.Generator().manual_seed(seed)
    weights = load_file(model / "model.safetensors")
    ranks, alphas = config.get("rank_pattern", {}), config.get("alpha_pattern", {})
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(weights):
        if not LINEARS.search(name) or only not in name or weights[name].dim() != 2:
            continue
        module = name.removesuffix(".weight")
        last = module.rpartition(".")[2]
        own_rank = ranks.get(last, rank)
        outputs, inputs = weights[name].shape
        down = torch.randn(own_rank, inputs, generator=random).to(dtype) * 0.3
        up = torch.randn(outputs, own_rank, generator=random).to(dtype) * 0.1
        tensors[f"base_model.model.{module}.lora_A.weight"] = down.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = up.contiguous()
        root = own_rank**0.5 if config.get("use_rslora") else own_rank
        scale = alphas.get(last, alpha) / root
        change = scale * up.double() @ down.double()
        weights[name] = (weights[name].double() + change).to(weights[name].dtype)
    assert tensors, f"no layer of {sorted(weights)} was changed"
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    if merged is not None:
        merged.mkdir(parents=True)
        for file in model.iterdir():
            if file.suffix == ".json":
                shutil.copy(file, merged)
        save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
