"""Each kind of rotary embedding, with sequences beyond the original context, in both spellings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minisgl._native import InputError, Model
from tests.python.models.tiny_models import (
    check_against_transformers,
    relative_error,
    save_random_model,
    tiny_config,
    token_ids,
    transformers_logits,
)

TOLERANCE = 1e-4
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        LLAMA3,
        YARN,
        {**YARN, "attention_factor": 1.3},
        {**YARN, "mscale": 0.8, "mscale_all_dim": 0.4},
        {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
        {**YARN, "truncate": False},
        {"rope_type": "yarn", "factor": 2.0},  # the original context is max_position_embeddings
    ],
    ids=lambda rope: "-".join(f"{key}={value}" for key, value in rope.items()),
)
def test_rope_types(rope: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config("llama", rope_parameters={**rope, "rope_theta": 20000.0})
    save_random_model(config, tmp_path)
    check_against_transformers(tmp_path, token_ids(120), TOLERANCE)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_yarn_in_other_families(family: str, tmp_path: Path) -> None:
    config = tiny_config(family, rope_parameters={**YARN, "rope_theta": 1e6})
    save_random_model(config, tmp_path)
    check_against_transformers(tmp_path, token_ids(100), TOLERANCE)


@pytest.mark.parametrize("type_key", ["type", "rope_type"])
def test_old_spelling(type_key: str, tmp_path: Path) -> None:
    """rope_theta and rope_scaling at the top level, as configurations had them before."""
    save_random_model(tiny_config("llama", rope_parameters={**LLAMA3, "rope_theta": 5e5}), tmp_path)
    expected = transformers_logits(tmp_path, token_ids(90))
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    rope[type_key] = rope.pop("rope_type")
    config["rope_scaling"] = rope
    file.write_text(json.dumps(config))
    assert relative_error(Model(str(tmp_path)).forward(token_ids(90)), expected) < TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}, "rope_theta": 100.0},
        {"rope_parameters": {**LLAMA3}, "rope_theta": 5e5},
        {"rope_scaling": {**LLAMA3}, "rope_theta": 5e5},
        {"rope_scaling": {}, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
        {"rope_scaling": None, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
        {
            "rope_scaling": {**LLAMA3},
            "rope_parameters": {"rope_type": "default", "rope_theta": 9.0},
        },
        {"rope_parameters": {**YARN, "rope_theta": 5e5}, "original_max_position_embeddings": 64},
        {"rope_scaling": {**YARN}, "original_max_position_embeddings": 64, "rope_theta": 5e5},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 64},
        {"rope_scaling": {"rope_type": "default"}, "rope_theta": 5e5},
        {
            "rope_parameters": {**YARN, "partial_rotary_factor": 1.0, "rope_theta": 5e5},
            "partial_rotary_factor": 0.5,
        },
    ],
)
def test_keys_at_either_level(changes: dict[str, Any], tmp_path: Path) -> None:
    """Beside the scaling and outside of it, where transformers reads them."""
    save_random_model(tiny_config("llama"), tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["rope_parameters"]
    file.write_text(json.dumps({**config, **changes}))
    expected = transformers_logits(tmp_path, token_ids(90))
    assert relative_error(Model(str(tmp_path)).forward(token_ids(90)), expected) < TOLERANCE


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "dynamic"}, "rope type 'dynamic' is not supported; supported: default"),
        ({"rope_type": "longrope"}, "short_factor must be a list of 8 numbers above 0"),
        (
            {"rope_type": "longrope", "short_factor": [1] * 8, "long_factor": [0] * 8},
            "long_factor must be a list of 8 numbers above 0",
        ),
        ({"rope_type": 3}, "rope_type must be a string, got 3"),
        ({"rope_type": "linear"}, "factor must be a number from .* and is missing"),
        ({"rope_type": "linear", "factor": 0}, "factor must be a number"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor 1 must be more than"),
        ({"rope_theta": "big"}, "rope_theta must be a number"),
        ({"rope_theta": -1.0}, "rope_theta must be a number"),
        ({**YARN, "original_max_position_embeddings": -1}, "original_max_position_embeddings must"),
        ({"full_attention": {}}, "differ by layer"),
        ({"rope_type": "linear", "factor": 2, "partial_rotary_factor": 0.5}, "only a part"),
    ],
)
def test_impossible_settings(rope: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_random_model(tiny_config("llama"), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rope_parameters": rope}))
    with pytest.raises(InputError, match=message):
        Model(str(tmp_path))
