"""Folders and files that can't be served: one clear sentence each."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minisgl._native import InputError, Model
from tests.python.models.tiny_models import save_random_model, tiny_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_random_model(tiny_config("llama"), tmp_path)


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        Model(str(folder))
    message = str(error.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture 'GPT2LMHeadModel' is not supported"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list"),
        ({"is_causal": False}, "attention to later tokens"),
        (
            {"hidden_size": 2**31},
            "hidden_size must be an integer from 1 to 1048576, got 2147483648",
        ),
        ({"hidden_size": -64}, "got -64"),
        ({"hidden_size": 64.5}, "got 64.5"),
        ({"hidden_size": "64"}, "got '64'"),
        ({"hidden_size": None}, "and is missing"),
        ({"hidden_size": 2**64 - 1}, "got 18446744073709551615"),
        ({"hidden_size": True}, "got true"),
        ({"num_attention_heads": 0}, "num_attention_heads must be an integer from 1"),
        ({"num_key_value_heads": 3}, "4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 20}, "head_dim must be a multiple of 8 up to 256, got 20"),
        ({"head_dim": 512}, "head_dim must be an integer from 1 to 256, got 512"),
        (
            {"head_dim": None, "num_attention_heads": 6},
            "is not a multiple of num_attention_heads 6",
        ),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps must be a number from 0 to 1, got 'NaN'"),
        ({"rope_theta": math.inf, "rope_parameters": None}, "1e+15, got 'Infinity'"),
        ({"num_hidden_layers": 4}, "has no tensor 'model.layers.3.input_layernorm.weight'"),
        ({"vocab_size": 161}, "has shape [160, 64], the configuration asks for [161, 64]"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps must be a number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, got 1"),
        ({"eos_token_id": ["x"]}, "eos_token_id must be an integer or a list of integers"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu, got 'gelu'"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quantised with 'hqq' are not"),
        ({"num_experts": 8}, "mixtures of experts of this family are not"),
        ({"max_position_embeddings": 0}, "max_position_embeddings must be an integer"),
    ],
)
def test_configurations(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_config(folder, **changes)
    assert message in refusal(folder)


def test_supported_families_are_listed(folder: Path) -> None:
    change_config(folder, architectures=["MambaForCausalLM"])
    message = refusal(folder)
    assert "'MambaForCausalLM' is not supported; supported: LlamaForCausalLM, Mistral" in message
    assert message.endswith(
        "Gemma3ForCausalLM, Mistral3ForConditionalGeneration (its text), "
        "Gemma3ForConditionalGeneration (its text)"
    )


def test_configuration_that_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)
    assert "nests JSON deeper" in refusal(folder)
    (folder / "config.json").write_bytes(b'{"a": "\xff"}')
    assert "is not valid JSON" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, 5000, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "truncated or damaged" in refusal(folder)


def test_pytorch_weights_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "weights in PyTorch's format" in refusal(folder)


def test_missing_tensor_and_odd_dtype(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, file)
    assert "has no tensor 'model.norm.weight'" in refusal(folder)
    tensors["model.norm.weight"] = norm.to(torch.float64)
    save_file(tensors, file)
    assert "has dtype 'F64', which is not supported; supported: F32, F16, BF16, F8_E4M3" in refusal(
        folder
    )


def test_missing_path() -> None:
    with pytest.raises(InputError, match="'/nowhere/model' does not exist"):
        Model("/nowhere/model")


def test_odd_values_of_keys_that_nobody_reads(folder: Path) -> None:
    logits = Model(str(folder)).forward([1, 2, 3])
    limits = [0.0, math.inf]
    change_config(folder, time_step_limit=limits, x=math.nan, y=-math.inf, quantization_config=None)
    (folder / "generation_config.json").write_text('{"x": NaN, "eos_token_id": null}')
    assert (Model(str(folder)).forward([1, 2, 3]) == logits).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": None},
        {"architectures": []},
        {"hidden_act": "swish"},
        {"eos_token_id": [None, 2]},
        {"head_dim": None, "rope_parameters": None},
    ],
)
def test_other_ways_to_say_it(folder: Path, changes: dict[str, Any]) -> None:
    logits = Model(str(folder)).forward([1, 2, 3])
    change_config(folder, **changes)
    assert (Model(str(folder)).forward([1, 2, 3]) == logits).all()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_null_means_a_head_of_keys_for_each_of_the_queries(family: str, tmp_path: Path) -> None:
    folder = save_random_model(tiny_config(family, num_key_value_heads=4), tmp_path)
    logits = Model(str(folder)).forward([1, 2, 3])
    change_config(folder, num_key_value_heads=None)
    assert (Model(str(folder)).forward([1, 2, 3]) == logits).all()


def test_one_file_of_another_name(folder: Path) -> None:
    logits = Model(str(folder)).forward([1, 2, 3])
    (folder / "model.safetensors").rename(folder / "merged.safetensors")
    assert (Model(str(folder)).forward([1, 2, 3]) == logits).all()


def test_stop_tokens_of_both_files(folder: Path) -> None:
    change_config(folder, eos_token_id=2)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2, 100_000]}))
    assert Model(str(folder)).info["eos_token_ids"] == [2, 5]


@pytest.mark.parametrize(
    ("ids", "chunks"),
    [([], None), ([160], None), ([-1], None), ([1, 2], [1]), ([1, 2], [0, 2]), ([1, 2], [2, 1])],
)
def test_bad_calls(folder: Path, ids: list[int], chunks: list[int] | None) -> None:
    model = Model(str(folder))
    with pytest.raises(InputError):
        model.forward(ids, chunk_sizes=chunks)
