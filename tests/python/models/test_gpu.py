"""Logits of random small models of each family on the GPU against transformers in f32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minisgl import _native
from minisgl.engine.cuda_library import load_cublas
from tests.python.models.tiny_models import (
    FAMILIES,
    rms_error,
    save_random_model,
    tiny_config,
    token_ids,
    transformers_logits,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(_native.num_gpus() == 0, reason="no CUDA device"),
]

TOLERANCE = 2e-2  # of the norm, for weights and activations of bf16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_chunks_and_decode(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    load_cublas(_native.build_info()["cuda"])
    save_random_model(tiny_config(family), tmp_path, dtype)
    ids = token_ids(75)
    expected = transformers_logits(tmp_path, ids)
    model = _native.Model(str(tmp_path), page_size=4, max_tokens=len(ids), device="cuda")
    for chunks in ([75], [40, 35], [74, 1], [1] * 75):
        assert rms_error(model.forward(ids, chunk_sizes=chunks), expected) < TOLERANCE
