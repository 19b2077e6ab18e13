"""Checkpoints of FP8 weights on the CPU, where they become bf16: every form of scales against the
same weights in bf16 and against transformers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minisgl import LLM
from minisgl._native import InputError, Model
from tests.python.models.fp8_checkpoints import FORMS, write_fp8
from tests.python.models.test_families import BF16_TOLERANCE
from tests.python.models.tiny_models import (
    relative_error,
    save_random_model,
    tiny_config,
    token_ids,
    transformers_logits,
)
from tests.python.running.tiny_model import make_tiny_model

SIZES = {"hidden_size": 256, "intermediate_size": 384, "head_dim": 64}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    return save_random_model(tiny_config("llama", **SIZES), folder, torch.bfloat16)


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, plain: Path, tmp_path: Path) -> None:
    folder = write_fp8(plain, tmp_path, form)
    ids = token_ids(60)
    ours = Model(str(folder)).forward(ids)
    np.testing.assert_array_equal(ours, Model(str(folder / "widened")).forward(ids))
    theirs = transformers_logits(folder / "widened", ids)
    assert relative_error(ours, theirs) < BF16_TOLERANCE


@pytest.mark.parametrize("form", ["channel", "block"])
def test_ignored_layers(form: str, plain: Path, tmp_path: Path) -> None:
    folder = write_fp8(plain, tmp_path, form, ignore=["layers.1.mlp", "k_proj"])
    ids = token_ids(60)
    ours = Model(str(folder)).forward(ids)
    np.testing.assert_array_equal(ours, Model(str(folder / "widened")).forward(ids))


@pytest.mark.parametrize("form", FORMS)
def test_fused_projections(form: str, tmp_path: Path) -> None:
    config = tiny_config(
        "phi3", hidden_size=256, intermediate_size=384, rope_parameters={"rope_type": "default"}
    )
    plain = save_random_model(config, tmp_path / "plain", torch.bfloat16)
    folder = write_fp8(plain, tmp_path, form)
    ids = token_ids(60)
    ours = Model(str(folder)).forward(ids)
    np.testing.assert_array_equal(ours, Model(str(folder / "widened")).forward(ids))


@pytest.mark.parametrize("form", FORMS)
def test_over_ranks(form: str, tmp_path: Path) -> None:
    config = tiny_config("llama", **SIZES | {"intermediate_size": 512})
    plain = save_random_model(config, tmp_path / "plain", torch.bfloat16)
    folder = write_fp8(plain, tmp_path, form)
    ids = token_ids(60)
    cut = Model(str(folder), num_ranks=2).forward(ids)
    np.testing.assert_array_equal(cut, Model(str(folder / "widened"), num_ranks=2).forward(ids))


@pytest.mark.parametrize("strategy", ["tensor", "channel"])
def test_written_by_compressed_tensors(strategy: str, plain: Path, tmp_path: Path) -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16)
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True}
    quantization.apply_quantization_config(
        model,
        quantization.QuantizationConfig(
            config_groups={"all": {"targets": ["Linear"], "weights": weights}},
            ignore=["lm_head", "model.layers.1.mlp.up_proj"],
            quantization_status="frozen",
        ),
    )
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            magnitude = module.weight.detach().abs()
            most = magnitude.max() if strategy == "tensor" else magnitude.amax(1, keepdim=True)
            module.weight_scale.data.copy_((most / 448).expand_as(module.weight_scale))
    compressor = compressors.ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path)
    compressor.update_config(str(tmp_path))

    tensors = load_file(tmp_path / "model.safetensors")
    assert sum(tensor.dtype == torch.float8_e4m3fn for tensor in tensors.values()) == 20
    widened = {
        name: (tensor.float() * tensors[name + "_scale"].float()).bfloat16()
        if tensor.dtype == torch.float8_e4m3fn
        else tensor
        for name, tensor in tensors.items()
        if not name.endswith("_scale")
    }
    (tmp_path / "widened").mkdir()
    save_file(widened, tmp_path / "widened" / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(plain / "config.json", tmp_path / "widened")
    ids = token_ids(60)
    ours = Model(str(tmp_path)).forward(ids)
    np.testing.assert_array_equal(ours, Model(str(tmp_path / "widened")).forward(ids))
    assert relative_error(ours, transformers_logits(tmp_path / "widened", ids)) < BF16_TOLERANCE


def test_cut_within_a_block_is_refused(plain: Path, tmp_path: Path) -> None:
    folder = write_fp8(plain, tmp_path, "block")
    with pytest.raises(InputError, match="have scales in blocks of 128, can't be cut at 192"):
        Model(str(folder), num_ranks=2)


def test_interleaved_rows_keep_their_scales(tmp_path: Path) -> None:
    plain = save_random_model(tiny_config("glm", **SIZES), tmp_path / "plain", torch.bfloat16)
    folder = write_fp8(plain, tmp_path, "channel")
    ids = token_ids(40)
    ours = Model(str(folder)).forward(ids)
    np.testing.assert_array_equal(ours, Model(str(folder / "widened")).forward(ids))


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "hqq"}, "quantised with 'hqq' are not supported; supported: fp8"),
        ({}, "quantised with an unnamed method are not supported"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
            },
            "'compressed-tensors', other than as 8-bit floats, are not supported",
        ),
    ],
)
def test_other_methods_are_named(
    quantization: dict[str, object], message: str, plain: Path, tmp_path: Path
) -> None:
    folder = write_fp8(plain, tmp_path, "channel")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    with pytest.raises(InputError, match=message):
        Model(str(folder))


def change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


def test_scales_that_are_missing_or_misshapen(plain: Path, tmp_path: Path) -> None:
    scale = "model.layers.0.mlp.up_proj.weight_scale"
    folder = write_fp8(plain, tmp_path / "a", "channel")
    change(folder, scale, None)
    with pytest.raises(InputError, match=r"up_proj.weight' is of FP8, and has no '.*weight_scale'"):
        Model(str(folder))
    folder = write_fp8(plain, tmp_path / "b", "channel")
    change(folder, scale, torch.ones(7))
    with pytest.raises(InputError, match=r"has shape \[7\]: for a weight of \[384, 256\] it must"):
        Model(str(folder))


@pytest.mark.parametrize("quantize", ["fp8", "int4", "q4_1"])
def test_quantize_needs_a_gpu(quantize: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "tiny")
    message = f"--quantize {quantize} needs a GPU of compute capability 9.0"
    with pytest.raises(Exception, match=message):
        LLM(str(folder), quantize=quantize, device="cpu", show_progress=False)


def test_quantize_is_not_deterministic(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "tiny")
    with pytest.raises(Exception, match="--deterministic and --quantize exclude each other"):
        LLM(str(folder), quantize="fp8", deterministic=True, device="cpu", show_progress=False)
