"""A request's tokens are a matter of the request alone: on the default model's quantised weights,
bit for bit, whatever it is batched with, however its prompt is cut, on any number of threads, and
after preemption.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from minisgl import LLM, SamplingParams
from minisgl.ipc.messages import EngineStats

NUM_REQUESTS = 16
MAX_TOKENS = 24
PROMPTS = [
    [(7 * i + 13 * j * j) % 5000 + 10 for j in range(5 + 9 * i)] for i in range(NUM_REQUESTS)
]
PARAMS = [
    SamplingParams(
        seed=i, temperature=0.8 if i % 2 else 0.0, top_p=0.9, max_tokens=MAX_TOKENS, ignore_eos=True
    )
    for i in range(NUM_REQUESTS)
]


def generate(model: Path, **options: int) -> tuple[list[list[int]], EngineStats]:
    with LLM(str(model), device="cpu", show_progress=False, **options) as llm:
        results = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
        return [result.outputs[0].token_ids for result in results], llm.stats()


@pytest.fixture(scope="module")
def alone(default_gguf: Path) -> list[list[int]]:
    """Each request by itself, one thread."""
    with LLM(str(default_gguf), device="cpu", show_progress=False, num_threads=1) as llm:
        return [
            llm.generate([prompt], params, use_tqdm=False)[0].outputs[0].token_ids
            for prompt, params in zip(PROMPTS, PARAMS, strict=True)
        ]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"num_threads": 2}, id="a batch of 16"),
        pytest.param({"num_threads": 3}, id="more threads than cores"),
        pytest.param({"num_threads": 2, "max_batch_tokens": 17}, id="prompts in small chunks"),
        pytest.param({"num_threads": 2, "max_running": 5}, id="five at once"),
    ],
)
def test_company_cuts_and_threads_change_no_token(
    default_gguf: Path, alone: list[list[int]], options: dict[str, int]
) -> None:
    tokens, _ = generate(default_gguf, **options)
    assert tokens == alone


def test_preemption_changes_no_token(default_gguf: Path, alone: list[list[int]]) -> None:
    tokens, stats = generate(default_gguf, num_threads=2, kv_cache_tokens=512, max_model_len=256)
    assert stats.num_preemptions > 0
    assert tokens == alone
    assert stats.pages_free == stats.pages_total
