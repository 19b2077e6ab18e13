"""Checkpoints in int4 against transformers with the same weights dequantised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from minisgl._native import InputError, Model
from tests.python.models.int4_checkpoints import save_int4
from tests.python.models.tiny_models import (
    assert_chunks_agree,
    rms_error,
    save_random_model,
    tiny_config,
    token_ids,
    transformers_logits,
)

SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
# rms: activations are rounded to 8 bits in blocks of 32, which isn't done to weights in bf16.
INT8_TOLERANCE, BF16_TOLERANCE = 5e-2, 2e-2


def made(tmp_path: Path, method: str, family: str = "llama", **options: Any) -> tuple[Path, Path]:
    original, folder, plain = (tmp_path / name for name in ("original", "int4", "plain"))
    save_random_model(tiny_config(family, **(SIZES if family == "llama" else {})), original)
    save_int4(original, folder, plain, method, **options)
    return folder, plain


@pytest.mark.parametrize(
    ("method", "options", "dtype"),
    [
        ("awq", {}, "int4_128"),
        ("awq", {"group_size": 64}, "int4_64"),
        ("awq", {"group_size": 32}, "q4_1"),
        ("gptq", {}, "int4_128"),
        ("gptq", {"symmetric": True, "group_size": 64}, "int4_64"),
        ("gptq_v2", {}, "int4_128"),
        ("gptq", {"shuffled": True}, "bf16"),
        ("packed", {}, "int4_128"),
        ("packed", {"symmetric": True, "dtype": torch.bfloat16}, "int4_128"),
        ("packed", {"symmetric": True, "group_size": 32}, "q4_0"),
    ],
)
def test_checkpoints(method: str, options: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    folder, plain = made(tmp_path, method, **options)
    ids = token_ids(48)
    model = Model(str(folder), kv_dtype="f32", max_tokens=64)
    assert model.info["weight_dtype"] == dtype
    ours = model.forward(ids)
    tolerance = BF16_TOLERANCE if dtype == "bf16" else INT8_TOLERANCE
    assert rms_error(ours, transformers_logits(plain, ids)) < tolerance
    assert_chunks_agree(model, ids, ours)


def test_fused_projections(tmp_path: Path) -> None:
    folder, plain = made(tmp_path, "gptq", family="phi3", group_size=32)
    ids = token_ids(48)
    ours = Model(str(folder), kv_dtype="f32", max_tokens=64).forward(ids)
    assert rms_error(ours, transformers_logits(plain, ids)) < INT8_TOLERANCE


def test_ranks_have_whole_groups(tmp_path: Path) -> None:
    folder, plain = made(tmp_path, "awq", group_size=64)
    ids = token_ids(48)
    ours = Model(str(folder), kv_dtype="f32", max_tokens=64, num_ranks=2).forward(ids)
    assert rms_error(ours, transformers_logits(plain, ids)) < INT8_TOLERANCE


def test_a_cut_through_groups_is_refused(tmp_path: Path) -> None:
    folder, _ = made(tmp_path, "awq", group_size=256)
    with pytest.raises(InputError, match="blocks of 128"):
        Model(str(folder), num_ranks=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 8}, "gptq weights of 8 bits are not supported"),
        ({"group_size": 48}, "in groups of 48: whole groups of a multiple of 32 are needed"),
        ({"group_size": 64}, "doesn't fit its other tensors"),
        ({"quant_method": "awq", "version": "gemv"}, "version 'gemv' are not supported"),
    ],
)
def test_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder, _ = made(tmp_path, "gptq")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        Model(str(folder))
