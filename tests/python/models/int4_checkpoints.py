"""Checkpoints with weights of 4 bits, from what AWQ, GPTQ and compressed-tensors say of their
formats, beside the same weights dequantised.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the outputs of a word, from its lowest bits on


class Rounded(NamedTuple):
    """w [outputs, inputs] = scale * (q - zero), of each input's group."""

    q: np.ndarray  # [outputs, inputs] of 0 to 15
    scale: np.ndarray  # [outputs, groups], as the file's dtype has it
    zero: np.ndarray  # [outputs, groups] of 1 to 15
    group_of: np.ndarray  # [inputs]

    def values(self) -> np.ndarray:
        scale, zero = self.scale[:, self.group_of], self.zero[:, self.group_of]
        values: np.ndarray = scale * (self.q - zero)
        return values


def round_to_int4(
    weight: np.ndarray,
    group_size: int,
    *,
    symmetric: bool,
    dtype: torch.dtype = torch.float16,
    shuffled: bool = False,
) -> Rounded:
    inputs = weight.shape[1]
    group_of = np.arange(inputs) // group_size
    if shuffled:
        np.random.default_rng(inputs).shuffle(group_of)
    groups = inputs // group_size
    members = np.argsort(group_of, kind="stable").reshape(groups, group_size)
    runs = weight[:, members]  # [outputs, groups, group_size]
    low, high = np.minimum(runs.min(-1), 0), np.maximum(runs.max(-1), 0)
    scale = np.maximum(-low, high) / 7.5 if symmetric else (high - low) / 15
    scale = torch.from_numpy(scale).to(dtype).double().numpy()
    zero = np.full(scale.shape, 8) if symmetric else np.clip(np.rint(-low / scale), 1, 15)
    q = np.clip(np.rint(weight / scale[:, group_of] + zero[:, group_of]), 0, 15)
    return Rounded(q.astype(np.int64), scale, zero.astype(np.int64), group_of)


def words(
    integers: np.ndarray, axis: int, order: tuple[int, ...] = tuple(range(8))
) -> torch.Tensor:
    """Eight neighbours along the axis in each int32, the first of `order` in its lowest bits."""
    moved = np.moveaxis(integers, axis, -1)
    padded = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, -moved.shape[-1] % 8)])
    eights = padded.reshape(*padded.shape[:-1], -1, 8)[..., list(order)]
    packed = (eights.astype(np.uint32) << np.arange(0, 32, 4, dtype=np.uint32)).sum(-1)
    return torch.from_numpy(np.moveaxis(packed.astype(np.uint32).view(np.int32), -1, axis).copy())


def awq_tensors(rounded: Rounded, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        "qweight": words(rounded.q.T, 1, AWQ_ORDER),
        "qzeros": words(rounded.zero.T, 1, AWQ_ORDER),
        "scales": torch.from_numpy(rounded.scale.T.copy()).to(dtype),
    }


def gptq_tensors(
    rounded: Rounded, dtype: torch.dtype, stored_less: int = 1
) -> dict[str, torch.Tensor]:
    return {
        "qweight": words(rounded.q.T, 0),
        "qzeros": words(rounded.zero.T - stored_less, 1),
        "scales": torch.from_numpy(rounded.scale.T.copy()).to(dtype),
        "g_idx": torch.from_numpy(rounded.group_of.astype(np.int32)),
    }


def packed_tensors(
    rounded: Rounded, dtype: torch.dtype, symmetric: bool
) -> dict[str, torch.Tensor]:
    tensors = {
        "weight_packed": words(rounded.q, 1),
        "weight_scale": torch.from_numpy(rounded.scale).to(dtype),
        "weight_shape": torch.tensor(rounded.q.shape),
    }
    if not symmetric:
        tensors["weight_zero_point"] = words(rounded.zero, 0)
    return tensors


def save_int4(
    original: Path,
    folder: Path,
    dequantized: Path,
    method: str,
    *,
    group_size: int = 128,
    symmetric: bool = False,
    dtype: torch.dtype = torch.float16,
    shuffled: bool = False,
) -> None:
    """The original's projections in int4, and the same weights in f32."""
    config: dict[str, Any] = json.loads((original / "config.json").read_text())
    stored: dict[str, torch.Tensor] = {}
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(original / "model.safetensors").items():
        plain[name] = stored[name] = tensor.float()
        if not name.endswith("_proj.weight"):
            continue
        rounded = round_to_int4(
            tensor.double().numpy(), group_size, symmetric=symmetric, dtype=dtype, shuffled=shuffled
        )
        plain[name] = torch.from_numpy(rounded.values()).float()
        if method == "awq":
            parts = awq_tensors(rounded, dtype)
        elif method == "packed":
            parts = packed_tensors(rounded, dtype, symmetric)
        else:
            parts = gptq_tensors(rounded, dtype, 0 if method == "gptq_v2" else 1)
        del stored[name]
        stem = name.removesuffix("weight")
        stored.update({stem + key: value.contiguous() for key, value in parts.items()})
    weights = {"num_bits": 4, "type": "int", "group_size": group_size, "symmetric": symmetric}
    configs: dict[str, dict[str, Any]] = {
        "awq": {"quant_method": "awq", "bits": 4, "group_size": group_size, "version": "gemm"},
        "gptq": {"quant_method": "gptq", "bits": 4, "group_size": group_size, "desc_act": shuffled},
        "packed": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        },
    }
    configs["gptq_v2"] = {**configs["gptq"], "checkpoint_format": "gptq_v2"}
    for target, tensors, extra in (
        (folder, stored, {"quantization_config": configs[method]}),
        (dequantized, plain, {}),
    ):
        target.mkdir()
        (target / "config.json").write_text(json.dumps({**config, **extra}))
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
