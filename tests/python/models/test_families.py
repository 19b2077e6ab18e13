"""Logits of random small models of each family against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minisgl import LLM, SamplingParams
from minisgl._native import Model
from tests.python.models.tiny_models import (
    FAMILIES,
    WITH_EXPERTS,
    check_against_transformers,
    relative_error,
    save_random_model,
    tiny_config,
    token_ids,
    transformers_logits,
)
from tests.python.server.byte_tokenizer import VOCAB_SIZE as TOKENIZER_SIZE
from tests.python.server.byte_tokenizer import make_backend

F32_TOLERANCE = 1e-4
BF16_TOLERANCE = 2e-2


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_f32(family: str, tied: bool, tmp_path: Path) -> None:
    save_random_model(tiny_config(family, tie_word_embeddings=tied), tmp_path)
    check_against_transformers(tmp_path, token_ids(75), F32_TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    save_random_model(tiny_config(family), tmp_path, dtype)
    # A rounded cache could change which experts are chosen.
    kv_dtype = "f32" if family in WITH_EXPERTS else "auto"
    check_against_transformers(tmp_path, token_ids(50), BF16_TOLERANCE, kv_dtype=kv_dtype)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (8, 1), (1, 1)])
def test_head_groups(heads: int, kv_heads: int, tmp_path: Path) -> None:
    config = tiny_config(
        "llama", hidden_size=16 * heads, num_attention_heads=heads, num_key_value_heads=kv_heads
    )
    save_random_model(config, tmp_path)
    check_against_transformers(tmp_path, token_ids(40), F32_TOLERANCE)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"sliding_window": 9}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
        (
            "qwen3",
            {
                "use_sliding_window": True,
                "sliding_window": 9,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
        ),
    ],
)
def test_sliding_window(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    save_random_model(tiny_config(family, **changes), tmp_path)
    check_against_transformers(tmp_path, token_ids(60), F32_TOLERANCE)


def test_window_of_each_layer(tmp_path: Path) -> None:
    changes = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}
    save_random_model(tiny_config("qwen2", **changes), tmp_path)
    assert Model(str(tmp_path)).info["window"] == [0, 0, 9]


def test_llama_with_biases(tmp_path: Path) -> None:
    save_random_model(tiny_config("llama", attention_bias=True, mlp_bias=True), tmp_path)
    check_against_transformers(tmp_path, token_ids(40), F32_TOLERANCE)


def test_qwen3_with_biases(tmp_path: Path) -> None:
    save_random_model(tiny_config("qwen3", attention_bias=True), tmp_path)
    check_against_transformers(tmp_path, token_ids(40), F32_TOLERANCE)


def test_sizes_that_are_no_multiples_of_a_tile(tmp_path: Path) -> None:
    config = tiny_config("llama", vocab_size=151, hidden_size=52, intermediate_size=77, head_dim=24)
    save_random_model(config, tmp_path)
    check_against_transformers(tmp_path, token_ids(41, vocab_size=151), F32_TOLERANCE)


def test_sharded_weights(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    save_random_model(tiny_config("llama"), whole)
    model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    model.save_pretrained(sharded, max_shard_size="100KB")
    assert (sharded / "model.safetensors.index.json").exists()
    ids = token_ids(20)
    assert (Model(str(sharded)).forward(ids) == Model(str(whole)).forward(ids)).all()


def test_threads_do_not_change_bits(tmp_path: Path) -> None:
    save_random_model(tiny_config("qwen3"), tmp_path)
    ids = token_ids(60)
    one = Model(str(tmp_path), num_threads=1).forward(ids)
    assert (Model(str(tmp_path), num_threads=2).forward(ids) == one).all()


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"mlp_bias": True}])
@pytest.mark.parametrize("family", ["granite", "smollm3"])
def test_biases_of_later_families(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    save_random_model(tiny_config(family, **changes), tmp_path)
    check_against_transformers(tmp_path, token_ids(40), F32_TOLERANCE)


def test_command_r_with_biases(tmp_path: Path) -> None:
    save_random_model(tiny_config("cohere", attention_bias=True), tmp_path)
    check_against_transformers(tmp_path, token_ids(40), F32_TOLERANCE)


@pytest.mark.parametrize("count", [64, 65])
def test_longrope_on_both_sides_of_the_original_context(count: int, tmp_path: Path) -> None:
    save_random_model(tiny_config("phi3"), tmp_path)
    check_against_transformers(tmp_path, token_ids(count), F32_TOLERANCE)


@pytest.mark.parametrize("family", ["olmo3", "cohere2", "gemma2", "gemma3_text"])
def test_which_layers_slide_by_default(family: str, tmp_path: Path) -> None:
    config = tiny_config(family, layer_types=None, num_hidden_layers=7)
    save_random_model(config, tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    del values["layer_types"]
    file.write_text(json.dumps(values))
    check_against_transformers(tmp_path, token_ids(40), F32_TOLERANCE)


@pytest.mark.parametrize("family", ["olmo3", "gemma3_text"])
def test_ropes_of_two_kinds_in_the_old_spelling(family: str, tmp_path: Path) -> None:
    """As the published configurations have them."""
    save_random_model(tiny_config(family), tmp_path)
    expected = transformers_logits(tmp_path, token_ids(60))
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    ropes = values.pop("rope_parameters")
    values["rope_theta"] = ropes["full_attention"].pop("rope_theta")
    values["rope_scaling"] = ropes["full_attention"]
    if family == "gemma3_text":
        values["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
    file.write_text(json.dumps(values))
    assert relative_error(Model(str(tmp_path)).forward(token_ids(60)), expected) < F32_TOLERANCE


@pytest.mark.parametrize(
    ("family", "whole"),
    [
        ("mistral", "Mistral3ForConditionalGeneration"),
        ("ministral3", "Mistral3ForConditionalGeneration"),
        ("gemma3_text", "Gemma3ForConditionalGeneration"),
    ],
)
@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_vision_towers_are_left_out(
    family: str, whole: str, prefix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text, both = tmp_path / "text", tmp_path / "both"
    save_random_model(tiny_config(family), text)
    both.mkdir()
    config = json.loads((text / "config.json").read_text())
    (both / "config.json").write_text(
        json.dumps({"architectures": [whole], "text_config": config, "vision_config": {}})
    )
    tensors = {}
    for name, tensor in load_file(text / "model.safetensors").items():
        head = "language_model.lm_head" if prefix.startswith("language") else "lm_head"
        tensors[name.replace("model.", prefix, 1).replace("lm_head", head)] = tensor
    tensors["vision_tower.patch_conv.weight"] = torch.zeros(4, 4)
    tensors["multi_modal_projector.linear_1.weight"] = torch.zeros(4, 4)
    save_file(tensors, both / "model.safetensors")
    ids = token_ids(30)
    np.testing.assert_array_equal(Model(str(both)).forward(ids), Model(str(text)).forward(ids))
    errors = capfd.readouterr().err
    assert "vision tower is left out" in errors
    assert "doesn't use" not in errors


@pytest.mark.parametrize("family", FAMILIES)
def test_served_with_the_prefix_cache(family: str, tmp_path: Path) -> None:
    """Prompts that begin alike, together and again: the greedy tokens of the model alone."""
    save_random_model(tiny_config(family, vocab_size=TOKENIZER_SIZE), tmp_path)
    make_backend().save(str(tmp_path / "tokenizer.json"))
    start = token_ids(40)
    prompts = [start, start + token_ids(7, seed=2), start[:30] + token_ids(20, seed=3)]
    # A context that Phi-3's short factors are for.
    model = Model(str(tmp_path), kv_dtype="f32", max_tokens=64)
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(8):
            ids.append(int(model.forward(ids)[-1].argmax()))
        expected.append(ids[len(prompt) :])
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with LLM(
        str(tmp_path), kv_dtype="f32", max_model_len=64, page_size=4, show_progress=False
    ) as llm:
        for _ in range(2):
            results = llm.generate(prompts, params, use_tqdm=False)
            assert [result.outputs[0].token_ids for result in results] == expected
