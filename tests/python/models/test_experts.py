"""Mixtures of experts: the forms that files have them in, quantised ones, and cuts over ranks.

What a family computes is tested with the dense ones (test_families.py and its neighbours).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file

from minisgl._native import InputError, Model
from tests.python.models.fp8_checkpoints import write_fp8
from tests.python.models.gguf_files import write_gguf
from tests.python.models.int4_checkpoints import save_int4
from tests.python.models.tiny_models import (
    WITH_EXPERTS,
    all_chosen,
    assert_chunks_agree,
    relative_error,
    rms_error,
    save_random_model,
    tiny_config,
    token_ids,
    transformers_logits,
)
from tests.reference.dequantize_gguf import dequantize_gguf

F32_ROUNDING = 1e-5
INT8_TOLERANCE = 5e-2
MXFP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


# Every expert is chosen, so that rounding can't change the choice.
@pytest.mark.parametrize("quantization", [Type.Q8_0, Type.Q4_K, Type.MXFP4], ids=lambda q: q.name)
def test_quantised_experts(quantization: Type, tmp_path: Path) -> None:
    original, file, dequantized = tmp_path / "hf", tmp_path / "m.gguf", tmp_path / "f32"
    sizes = {"hidden_size": 256, "moe_intermediate_size": 256, "num_attention_heads": 8}
    chosen = {"num_local_experts": 4, "num_experts_per_tok": 4, "num_hidden_layers": 2}
    save_random_model(tiny_config("qwen3_moe", **sizes, **chosen), original)
    write_gguf(original, file, quantization)
    dequantize_gguf(file, dequantized)
    ids = token_ids(48)
    model = Model(str(file), kv_dtype="f32", max_tokens=64)
    assert model.info["weight_dtype"] == quantization.name.lower()
    ours = model.forward(ids)
    reference = transformers_logits(dequantized, ids)
    assert rms_error(ours, reference) < INT8_TOLERANCE
    assert_chunks_agree(model, ids, ours)
    assert relative_error(Model(str(dequantized)).forward(ids), reference) < 1e-4


def test_blocks_of_gpt_oss(tmp_path: Path) -> None:
    """MXFP4 as its checkpoints have it, against the values that it stands for."""
    plain, blocks = tmp_path / "plain", tmp_path / "blocks"
    config = tiny_config("gpt_oss", num_local_experts=4, num_experts_per_tok=4)
    save_random_model(config, plain)
    tensors = load_file(plain / "model.safetensors")
    rng = np.random.default_rng(3)
    quantized: dict[str, torch.Tensor] = {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "experts.down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        packed = rng.integers(0, 256, (experts, rows, columns // 32, 16), dtype=np.uint8)
        exponents = rng.integers(122, 126, (experts, rows, columns // 32), dtype=np.uint8)
        quantized[f"{name}_blocks"] = torch.from_numpy(packed)
        quantized[f"{name}_scales"] = torch.from_numpy(exponents)
        pairs = np.stack([MXFP4_VALUES[packed & 15], MXFP4_VALUES[packed >> 4]], axis=-1)
        scales = np.exp2(exponents.astype(np.float32) - 127)[..., None, None]
        values = (pairs * scales).reshape(experts, rows, columns)
        tensors[name] = torch.from_numpy(values.swapaxes(1, 2).copy())
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    config.quantization_config = {"quant_method": "mxfp4"}
    config.save_pretrained(blocks)
    for name in [name for name in tensors if f"{name}_blocks" in quantized]:
        del tensors[name]
    save_file({**tensors, **quantized}, blocks / "model.safetensors")

    ids = token_ids(48)
    reference = transformers_logits(plain, ids)
    assert relative_error(Model(str(plain)).forward(ids), reference) < 1e-4
    model = Model(str(blocks), kv_dtype="f32")
    ours = model.forward(ids)
    assert rms_error(ours, reference) < INT8_TOLERANCE
    cut = Model(str(blocks), kv_dtype="f32", num_ranks=2, expert_parallel=True).forward(ids)
    assert rms_error(cut, ours) < INT8_TOLERANCE
    with pytest.raises(InputError, match=r"96 intermediate features of an expert, .* blocks of 32"):
        Model(str(blocks), num_ranks=2)  # three blocks


@pytest.mark.parametrize("form", ["FP8", "int4"])
def test_experts_with_scales_of_their_own_are_refused(form: str, tmp_path: Path) -> None:
    plain, folder = tmp_path / "plain", tmp_path / form
    sizes = {"hidden_size": 128, "moe_intermediate_size": 128}
    save_random_model(tiny_config("qwen3_moe", **sizes), plain, torch.bfloat16)
    if form == "FP8":
        write_fp8(plain, folder, "channel")
    else:
        save_int4(plain, folder, tmp_path / "dequantised", "packed")
    with pytest.raises(
        InputError, match=rf"experts.0.gate_proj.weight' is of an expert and in {form}"
    ):
        Model(str(folder))


def test_gate_and_up_of_all_experts_as_one_tensor(tmp_path: Path) -> None:
    each, merged = tmp_path / "each", tmp_path / "merged"
    config = tiny_config("qwen3_moe")
    save_random_model(config, each)
    config.save_pretrained(merged)
    tensors = load_file(each / "model.safetensors")
    for layer in range(config.num_hidden_layers):
        base = f"model.layers.{layer}.mlp.experts."
        own = {
            part: torch.stack([tensors.pop(f"{base}{i}.{part}_proj.weight") for i in range(8)])
            for part in ("gate", "up", "down")
        }
        tensors[f"{base}gate_up_proj"] = torch.cat([own["gate"], own["up"]], dim=1)
        tensors[f"{base}down_proj"] = own["down"]
    save_file(tensors, merged / "model.safetensors")
    ids = token_ids(40)
    np.testing.assert_array_equal(Model(str(merged)).forward(ids), Model(str(each)).forward(ids))


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("family", WITH_EXPERTS)
def test_whole_experts_over_ranks(family: str, num_ranks: int, tmp_path: Path) -> None:
    save_random_model(tiny_config(family, **all_chosen(family)), tmp_path)
    ids = token_ids(60)
    whole = Model(str(tmp_path), max_tokens=128)
    cut = Model(str(tmp_path), max_tokens=128, num_ranks=num_ranks, expert_parallel=True)
    ours = cut.forward(ids)
    assert relative_error(ours, whole.forward(ids)) < F32_ROUNDING
    assert_chunks_agree(cut, ids, ours)


def test_a_step_reads_the_chosen_experts(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    save_random_model(tiny_config("mixtral", num_experts_per_tok=1), few)
    save_random_model(tiny_config("mixtral", num_experts_per_tok=3), many)
    one, three = (Model(str(folder)).info["weight_bytes"] for folder in (few, many))
    assert three - one == 2 * 3 * 3 * 64 * 96 * 4  # experts, layers, matrices


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"moe_intermediate_size": 30}, {"num_ranks": 4}, "30 intermediate features of an expert"),
        (
            {"num_local_experts": 6},
            {"num_ranks": 4, "expert_parallel": True},
            "6 experts can't be split over 4 ranks; numbers of ranks that work: 1, 2$",
        ),
    ],
)
def test_what_can_not_be_cut(
    settings: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_random_model(tiny_config("qwen3_moe", **settings), tmp_path)
    with pytest.raises(InputError, match=message):
        Model(str(tmp_path), **options)


def test_dense_models_have_no_experts_to_deal_out(tmp_path: Path) -> None:
    save_random_model(tiny_config("llama"), tmp_path)
    with pytest.raises(InputError, match=r"llama has no experts: --expert-parallel"):
        Model(str(tmp_path), num_ranks=2, expert_parallel=True)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    save_random_model(tiny_config("olmoe"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.5.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        InputError, match=r"no tensor 'model.layers.1.mlp.experts.5.up_proj.weight'"
    ):
        Model(str(tmp_path))


def test_experts_of_another_shape_are_named(tmp_path: Path) -> None:
    save_random_model(tiny_config("granitemoe"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.block_sparse_moe.input_linear.weight"
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"input_linear.weight' has shape \[8, 191, 64\]"):
        Model(str(tmp_path))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_experts_in_a_file(num_ranks: int, tmp_path: Path) -> None:
    """They give what those in memory give, and leave nothing behind."""
    path, folder = tmp_path / "model", tmp_path / "experts"
    folder.mkdir()
    save_random_model(tiny_config("gpt_oss"), path, torch.bfloat16)
    ids = token_ids(40)
    in_memory = Model(str(path), num_ranks=num_ranks).forward(ids)
    model = Model(str(path), num_ranks=num_ranks, expert_folder=str(folder))
    assert np.array_equal(model.forward(ids), in_memory)
    assert f"{folder}/minisgl-experts-" in Path("/proc/self/maps").read_text()
    assert list(folder.iterdir()) == []


def test_folders_that_experts_cannot_lie_in(tmp_path: Path) -> None:
    save_random_model(tiny_config("qwen3_moe"), tmp_path)
    for folder, fault in (
        ("/dev/shm", "is in memory itself"),
        ("/proc", "can't make a file there"),
        (str(tmp_path / "missing"), "No such file"),
    ):
        with pytest.raises(InputError, match=f"--expert-folder '{folder}': {fault}"):
            Model(str(tmp_path), expert_folder=folder)
    save_random_model(tiny_config("qwen3"), tmp_path)
    with pytest.raises(InputError, match="qwen3 has no experts: --expert-folder is for mixtures"):
        Model(str(tmp_path), expert_folder=str(tmp_path))


def test_experts_that_do_not_fit_into_memory(tmp_path: Path) -> None:
    """Said before anything is loaded: the file is as large as it says, and has no contents."""
    save_random_model(
        tiny_config("qwen3_moe", num_hidden_layers=1, num_local_experts=256), tmp_path
    )
    file = tmp_path / "model.safetensors"
    kept = {n: t for n, t in load_file(file).items() if ".experts." not in n}
    header: dict[str, Any] = {}
    end = 0
    width = 1 << 22
    for name, shape in [
        *((name, list(tensor.shape)) for name, tensor in kept.items()),
        ("model.layers.0.mlp.experts.gate_up_proj", [256, 2 * width, 64]),
        ("model.layers.0.mlp.experts.down_proj", [256, 64, width]),
    ]:
        size = 4 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)
    config = json.loads((tmp_path / "config.json").read_text())
    config["moe_intermediate_size"] = width
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError,
        match=r"its weights take 786\d{3} MiB of memory, and \d+ MiB are.*--expert-folder",
    ):
        Model(str(tmp_path))
    with pytest.raises(InputError, match=r"its experts take 786\d{3} MiB, and \d+ MiB are free in"):
        Model(str(tmp_path), expert_folder=str(tmp_path))
