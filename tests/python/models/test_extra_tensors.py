"""Tensors that a configuration doesn't ask for: a head of its own is used, the rest is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file

from minisgl._native import Model
from tests.python.models.gguf_files import write_gguf
from tests.python.models.tiny_models import (
    relative_error,
    save_random_model,
    tiny_config,
    token_ids,
    transformers_logits,
)

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    return save_random_model(tiny_config("llama", tie_word_embeddings=True), tmp_path / "hf")


def change_tensors(folder: Path, change: Callable[[Tensors], None]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def test_a_head_of_its_own_wins(tied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def add_head(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = torch.randn(tensors["model.embed_tokens.weight"].shape)

    change_tensors(tied, add_head)
    ids = token_ids(20)
    ours = Model(str(tied)).forward(ids)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "WARNING" in lines[0]
    assert "tie_word_embeddings, and an lm_head of its own" in lines[0]
    assert relative_error(ours, transformers_logits(tied, ids)) < 1e-4


def test_a_head_that_repeats_the_embedding(tied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ids = token_ids(20)
    expected = Model(str(tied))

    def add_head(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    change_tensors(tied, add_head)
    model = Model(str(tied))
    assert model.info == expected.info  # the bytes of a step among it: one matrix, not two
    np.testing.assert_array_equal(model.forward(ids), expected.forward(ids))
    assert capfd.readouterr().err == ""


def test_tensors_that_nobody_reads_are_named(
    tied: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def add(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(64)

    change_tensors(tied, add)
    Model(str(tied))
    assert capfd.readouterr().err.endswith(
        f"'{tied}': the model doesn't use 1 tensor of the file: "
        "'model.layers.0.self_attn.q_proj.bias'.\n"
    )
    file = tmp_path / "m.gguf"
    extra = {f"mtp.{i}.weight": np.ones(4, np.float32) for i in range(5)}
    write_gguf(tied, file, Type.F32, extra=extra)
    Model(str(file))
    assert capfd.readouterr().err.endswith(
        f"'{file}': the model doesn't use 5 tensors of the file: "
        "'mtp.0.weight', 'mtp.1.weight', 'mtp.2.weight' and 2 more.\n"
    )
