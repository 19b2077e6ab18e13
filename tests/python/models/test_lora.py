"""LoRA adapters of random small models against transformers with merged weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minisgl._native import InputError, Model
from tests.python.models.lora_adapters import save_adapter
from tests.python.models.tiny_models import (
    FAMILIES,
    relative_error,
    save_random_model,
    tiny_config,
    token_ids,
    transformers_logits,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    model, adapter, merged = tmp_path / "model", tmp_path / "adapter", tmp_path / "merged"
    save_random_model(tiny_config(family), model)
    save_adapter(model, adapter, merged=merged)
    ids = token_ids(75)
    wanted = transformers_logits(merged, ids)
    for num_ranks in (1, 2):
        ours = Model(str(model), num_ranks=num_ranks)
        assert relative_error(ours.forward(ids), wanted) > 0.1  # the adapter changes much
        ours.use_adapter(str(adapter))
        assert relative_error(ours.forward(ids), wanted) < 1e-4
        chunks = [45, *[1] * 30]
        assert relative_error(ours.forward(ids, chunk_sizes=chunks), wanted) < 1e-4


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 7, "down_proj": 33}, "alpha_pattern": {"q_proj": 3.5}},
        {"rank": 256, "alpha": 4.0},
        {"rank": 1},
        {"only": "layers.1.mlp"},
        {"only": "v_proj"},
    ],
)
def test_forms(config: dict[str, Any], tmp_path: Path) -> None:
    model, adapter, merged = tmp_path / "model", tmp_path / "adapter", tmp_path / "merged"
    # Sizes that are no multiples of a vector.
    sizes = {"hidden_size": 52, "intermediate_size": 77, "head_dim": 24}
    save_random_model(tiny_config("llama", **sizes), model)
    save_adapter(model, adapter, merged=merged, **config)
    ids = token_ids(21)
    ours = Model(str(model))
    ours.use_adapter(str(adapter))
    assert relative_error(ours.forward(ids), transformers_logits(merged, ids)) < 1e-4


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_half_precision(family: str, tmp_path: Path) -> None:
    model, adapter, merged = tmp_path / "model", tmp_path / "adapter", tmp_path / "merged"
    save_random_model(tiny_config(family), model, torch.bfloat16)
    save_adapter(model, adapter, merged=merged, dtype=torch.bfloat16, alpha=4.0)
    ids = token_ids(30)
    ours = Model(str(model), kv_dtype="f32")
    ours.use_adapter(str(adapter))
    # The merged weights are rounded, the adapter's aren't.
    assert relative_error(ours.forward(ids), transformers_logits(merged, ids)) < 5e-2


def test_rows_have_the_same_bits_in_any_company(tmp_path: Path) -> None:
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    save_random_model(tiny_config("qwen3"), model)
    save_adapter(model, adapter, rank=12)
    ids = token_ids(60)
    logits = []
    for threads, chunks in ((1, [60]), (2, [1] * 60), (2, [7, 3, 50])):
        ours = Model(str(model), num_threads=threads)
        ours.use_adapter(str(adapter))
        logits.append(ours.forward(ids, chunk_sizes=chunks))
    assert (logits[0] == logits[1]).all()
    assert (logits[0] == logits[2]).all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA, got 'IA3'"),
        ({"use_dora": True}, "use_dora isn't supported"),
        ({"lora_bias": True}, "lora_bias isn't supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save isn't supported"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters isn't supported"),
        ({"bias": "all"}, "bias 'all' isn't supported"),
        ({"r": 300}, "r must be an integer from 1 to 256, got 300"),
        ({"r": 40}, "the rank of 'model.layers.0.self_attn.q_proj' is 40, --max-lora-rank is 32"),
        ({"r": 5}, "has shape [4, 64], the model and adapter_config.json ask for [5, 64]"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number"),
        ({"rank_pattern": {"q.*": 4}}, "rank_pattern has the regular expression 'q.*'"),
    ],
)
def test_configurations_that_are_refused(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    save_random_model(tiny_config("llama"), model)
    save_adapter(model, adapter)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InputError) as error:
        Model(str(model)).use_adapter(str(adapter), max_rank=32)
    assert sentence in str(error.value)
    assert str(adapter) in str(error.value)
    assert "\n" not in str(error.value)


def test_tensors_that_are_refused(tmp_path: Path) -> None:
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    save_random_model(tiny_config("llama"), model)
    save_adapter(model, adapter)
    path = adapter / "adapter_model.safetensors"
    good = load_file(path)
    ours = Model(str(model))
    q_proj = "base_model.model.model.layers.0.self_attn.q_proj"
    infinite = good[f"{q_proj}.lora_B.weight"].clone()
    infinite[3, 1] = float("inf")
    for changes, sentence in [
        ({"base_model.model.lm_head.weight": torch.zeros(4, 4)}, "is no lora_A or lora_B"),
        (
            {
                "base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64),
                "base_model.model.lm_head.lora_B.weight": torch.zeros(160, 4),
            },
            "'lm_head' is no layer of the model that adapters change",
        ),
        ({f"{q_proj}.lora_B.weight": None}, "has no lora_B"),
        ({f"{q_proj}.lora_A.weight": torch.zeros(4, 60)}, "lora_A of"),
        ({f"{q_proj}.lora_B.weight": infinite}, "holds inf"),
        ({f"{q_proj}.lora_A.weight": torch.zeros(4, 64, dtype=torch.int32)}, "has type 'I32'"),
    ]:
        save_file({k: v for k, v in {**good, **changes}.items() if v is not None}, path)
        with pytest.raises(InputError) as error:
            ours.use_adapter(str(adapter))
        assert sentence in str(error.value)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated or damaged"):
        ours.use_adapter(str(adapter))
    path.unlink()
    with pytest.raises(InputError, match=r"adapter_model\.safetensors"):
        ours.use_adapter(str(adapter))
    with pytest.raises(InputError, match="is no folder"):
        ours.use_adapter(str(tmp_path / "nothing"))
