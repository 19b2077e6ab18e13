"""Mixtures of experts on the GPU against transformers on the same GPU, as in test_gpu.py.

Rounding to bf16 turns a choice between experts that are nearly as good, here and there, and the
row becomes another one. So rows are compared one by one, and it is the middle row that counts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from minisgl import LLM, SamplingParams, _native
from minisgl.rank.cuda_library import load_cublas
from tests.python.models.tiny_models import (
    WITH_EXPERTS,
    save_random_model,
    tiny_config,
    token_ids,
    transformers_logits,
)
from tests.python.server.byte_tokenizer import VOCAB_SIZE, make_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(_native.num_gpus() == 0, reason="no CUDA device"),
]


def row_errors(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.sqrt(((logits - truth) ** 2).mean(-1) / (truth**2).mean(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", WITH_EXPERTS)
def test_prefill_chunks_and_decode(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    load_cublas(_native.build_info()["cuda"])
    save_random_model(tiny_config(family), tmp_path, dtype)
    ids = token_ids(75)
    truth = transformers_logits(tmp_path, ids, device="cuda")
    peer = row_errors(
        transformers_logits(tmp_path, ids, dtype=torch.bfloat16, device="cuda"), truth
    )
    model = _native.Model(str(tmp_path), page_size=4, max_tokens=len(ids), device="cuda")
    for chunks in ([75], [40, 35], [74, 1], [9, 16, 50], [1] * 75):
        ours = row_errors(model.forward(ids, chunk_sizes=chunks), truth)
        assert np.median(ours) <= 1.2 * np.median(peer), (chunks, np.median(ours), np.median(peer))
        assert (ours > 0.1).sum() <= 2 * (peer > 0.1).sum() + 4, (chunks, ours.max(), peer.max())


@pytest.mark.parametrize("family", ["qwen3_moe", "granitemoe", "gpt_oss"])
def test_replayed_decode(family: str, tmp_path: Path) -> None:
    """Recorded steps of several sizes say what a model that is asked token by token says."""
    save_random_model(tiny_config(family, vocab_size=VOCAB_SIZE), tmp_path, torch.bfloat16)
    make_backend().save(str(tmp_path / "tokenizer.json"))
    prompts = [token_ids(length, seed=length) for length in (1, 3, 17, 40, 64, 5, 6, 7, 8, 9)]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=20)
    with LLM(str(tmp_path), device="cuda", show_progress=False) as llm:
        results = llm.generate(prompts, params, use_tqdm=False)
    errors = []
    for prompt, result in zip(prompts, results, strict=True):
        output = result.outputs[0]
        ids = prompt + output.token_ids[:-1]
        truth, peer = (
            torch.log_softmax(
                torch.from_numpy(
                    transformers_logits(tmp_path, ids, dtype=dtype, device="cuda")[
                        len(prompt) - 1 :
                    ]
                ),
                -1,
            ).numpy()
            for dtype in (torch.float32, torch.bfloat16)
        )
        assert output.logprobs is not None
        seen = [[pair[0] for pair in token.alternatives] for token in output.logprobs]
        ours = np.array([[pair[1] for pair in token.alternatives] for token in output.logprobs])
        rows = np.arange(len(seen))[:, None]
        errors += list(
            zip(
                row_errors(ours, truth[rows, seen]),
                row_errors(peer[rows, seen], truth[rows, seen]),
                strict=True,
            )
        )
    ours_median, peer_median = np.median(np.array(errors), axis=0)
    assert ours_median <= 1.2 * peer_median, (ours_median, peer_median)
