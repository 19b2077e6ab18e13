"""Checkpoints of FP8 weights, written by their formats' public descriptions, each beside the same
weights in bf16.

E4M3 bytes, and scales that they are multiplied by: one number a tensor, one a row, or one for each
block of 128 x 128. The block form names them weight_scale_inv, the others weight_scale.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

BLOCK = 128
FORMS = ("tensor", "channel", "block", "fbgemm", "static")
LARGEST = torch.finfo(torch.float8_e4m3fn).max


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def scales_of(weight: torch.Tensor, form: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a checkpoint of that form stores as scales, and the same for each element."""
    rows, cols = weight.shape
    magnitude = weight.float().abs()
    if form == "block":
        stored = torch.empty((rows + BLOCK - 1) // BLOCK, (cols + BLOCK - 1) // BLOCK)
        for i in range(stored.shape[0]):
            for j in range(stored.shape[1]):
                block = magnitude[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
                stored[i, j] = block.max() / LARGEST
        spread = stored.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:rows, :cols]
        return stored, spread
    if form in ("tensor", "static"):
        stored = magnitude.max() / LARGEST
        return stored.reshape(1 if form == "static" else ()), stored.expand(rows, cols)
    stored = magnitude.amax(1, keepdim=True) / LARGEST
    if form == "channel":
        stored = stored.bfloat16()  # as compressed-tensors has them
    return stored, stored.float().expand(rows, cols)


def quantization_config(form: str, ignore: Sequence[str]) -> dict[str, Any]:
    if form == "block":
        return {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": list(ignore),
        }
    if form == "fbgemm":
        return {"quant_method": "fbgemm_fp8", "modules_to_not_convert": list(ignore)}
    if form == "static":
        return {
            "quant_method": "fp8",
            "activation_scheme": "static",
            "ignored_layers": list(ignore),
        }
    weights = {
        "num_bits": 8,
        "type": "float",
        "strategy": form,
        "symmetric": True,
        "dynamic": False,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": list(ignore),
    }


def round_inputs(model: torch.nn.Module, ignore: Sequence[str] = ()) -> None:
    """From now on linear layers other than the head and those of `ignore` read their inputs in
    E4M3, each token's with a scale of its own.
    """

    def rounded(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        scale = inputs[0].abs().amax(-1, keepdim=True) / LARGEST
        return ((inputs[0] / scale).to(torch.float8_e4m3fn).to(scale.dtype) * scale,)

    for name, module in model.named_modules():
        if is_linear(name + ".weight") and not any(part in name for part in ignore):
            module.register_forward_pre_hook(rounded)


def write_fp8(plain: Path, folder: Path, form: str, ignore: Sequence[str] = ()) -> Path:
    """The model of `plain` with its linear layers in FP8. Its folder also gets "widened": the
    weights that those bytes stand for, in bf16.
    """
    tensors = load_file(plain / "model.safetensors")
    encoded: dict[str, torch.Tensor] = {}
    widened: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        encoded[name] = widened[name] = tensor
        if not is_linear(name) or any(part in name for part in ignore):
            continue
        stored, spread = scales_of(tensor, form)
        encoded[name] = (tensor.float() / spread).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        encoded[name + ("_scale_inv" if form == "block" else "_scale")] = stored.contiguous()
        if form == "static":
            encoded[name.removesuffix("weight") + "input_scale"] = torch.tensor(0.02)
        widened[name] = (encoded[name].float() * spread).bfloat16()
    config = json.loads((plain / "config.json").read_text())
    for target, kept, more in (
        (folder, encoded, {"quantization_config": quantization_config(form, ignore)}),
        (folder / "widened", widened, {}),
    ):
        target.mkdir(parents=True, exist_ok=True)
        save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
        (target / "config.json").write_text(json.dumps(config | more))
    return folder
