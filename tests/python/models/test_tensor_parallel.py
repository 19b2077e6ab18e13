"""Models cut over ranks: the logits of one device within f32 rounding, and the same greedy text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from minisgl._native import InputError, Model
from minisgl.tokenizer import load_tokenizer
from tests.python.models.gguf_files import write_gguf
from tests.python.models.test_default_model import PROSE, perplexity
from tests.python.models.tiny_models import (
    FAMILIES,
    all_chosen,
    assert_chunks_agree,
    check_against_transformers,
    relative_error,
    save_random_model,
    tiny_config,
    token_ids,
)
from tests.reference.dequantize_gguf import dequantize_gguf

F32_ROUNDING = 1e-5
NEW_TOKENS = 24


def greedy(model: Model, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        ids.append(int(model.forward(ids)[-1].argmax()))
    return ids[len(prompt) :]


def assert_same_model(path: Path, num_ranks: int) -> Model:
    """Logits of a prompt, and what follows three prompts greedily; returns the model over ranks."""
    whole, cut = (Model(str(path), max_tokens=128, num_ranks=n) for n in (1, num_ranks))
    ids = token_ids(60)
    assert relative_error(cut.forward(ids), whole.forward(ids)) < F32_ROUNDING
    for seed in range(3):
        prompt = token_ids(10, seed=seed)
        assert greedy(cut, prompt) == greedy(whole, prompt)
    return cut


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, num_ranks: int, tmp_path: Path) -> None:
    # Over 4 ranks, two share one of the two KV heads.
    save_random_model(tiny_config(family, **all_chosen(family)), tmp_path)
    cut = assert_same_model(tmp_path, num_ranks)
    ids = token_ids(40)
    assert_chunks_agree(cut, ids, cut.forward(ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    save_random_model(tiny_config("llama", tie_word_embeddings=True), tmp_path, dtype)
    whole, cut = (Model(str(tmp_path), kv_dtype="f32", num_ranks=n) for n in (1, 2))
    assert relative_error(cut.forward(token_ids(50)), whole.forward(token_ids(50))) < F32_ROUNDING


def test_a_cache_of_8_bits(tmp_path: Path) -> None:
    save_random_model(tiny_config("llama"), tmp_path)
    whole, cut = (Model(str(tmp_path), kv_dtype="int8", num_ranks=n) for n in (1, 2))
    exact = Model(str(tmp_path), kv_dtype="f32").forward(token_ids(50))
    # A sum of another order moves a few of the bytes by one.
    assert relative_error(cut.forward(token_ids(50)), whole.forward(token_ids(50))) < 2e-3
    assert relative_error(whole.forward(token_ids(50)), exact) < 0.1


@pytest.mark.parametrize("vocab_size", [157, 163])
def test_a_vocabulary_that_does_not_divide(vocab_size: int, tmp_path: Path) -> None:
    config = tiny_config("qwen2", vocab_size=vocab_size, tie_word_embeddings=True)
    save_random_model(config, tmp_path)
    model = Model(str(tmp_path), num_ranks=4)
    ids = [*token_ids(30, vocab_size), vocab_size - 1]
    logits = model.forward(ids)
    assert logits.shape == (31, vocab_size)
    assert relative_error(logits, Model(str(tmp_path)).forward(ids)) < F32_ROUNDING


def test_biases_on_every_projection(tmp_path: Path) -> None:
    save_random_model(tiny_config("llama", attention_bias=True, mlp_bias=True), tmp_path)
    assert_same_model(tmp_path, 4)


def test_each_rank_has_its_share_of_the_weights(tmp_path: Path) -> None:
    save_random_model(tiny_config("llama"), tmp_path)
    whole, cut = (Model(str(tmp_path), num_ranks=n).info["weight_bytes"] for n in (1, 2))
    assert 0.5 <= cut / whole < 0.52


def quantised(folder: Path, quantization: Type, **sizes: int) -> str:
    save_random_model(tiny_config("llama", **sizes), folder)
    write_gguf(folder, folder / "model.gguf", quantization)
    return str(folder / "model.gguf")


@pytest.mark.parametrize("quantization", [Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.F16])
def test_gguf_blocks_are_cut_between(quantization: Type, tmp_path: Path) -> None:
    path = quantised(tmp_path, quantization, hidden_size=128, intermediate_size=256)
    ids = token_ids(50)
    whole, cut = (Model(path, kv_dtype="f32", num_ranks=n).forward(ids) for n in (1, 4))
    # Activations are int8 for blocks: a sum of another order moves some of them by one.
    assert relative_error(cut, whole) < (F32_ROUNDING if quantization is Type.F16 else 0.05)


def test_k_quants_are_cut_between_blocks_of_256(tmp_path: Path) -> None:
    path = quantised(
        tmp_path, Type.Q4_K, hidden_size=512, intermediate_size=512, num_attention_heads=8
    )
    ids = token_ids(30)
    whole, cut = (Model(path, num_ranks=n).forward(ids) for n in (1, 2))
    assert relative_error(cut, whole) < 0.05
    with pytest.raises(InputError, match=r"512 attention outputs.*blocks of 256.*work: 1, 2$"):
        Model(path, num_ranks=4)


def test_numbers_that_do_not_divide_give_one_sentence(tmp_path: Path) -> None:
    save_random_model(tiny_config("llama"), tmp_path)
    message = (
        "the model's 4 query heads can't be split over 3 ranks; numbers of ranks that work: 1, 2, 4"
    )
    with pytest.raises(InputError, match=message):
        Model(str(tmp_path), num_ranks=3)


def test_ranks_against_transformers(tmp_path: Path) -> None:
    save_random_model(tiny_config("qwen3"), tmp_path)
    check_against_transformers(tmp_path, token_ids(40), 1e-4, num_ranks=4)


# 9 query heads and 3 KV heads.
def test_the_default_model_over_three_ranks(default_gguf: Path, tmp_path: Path) -> None:
    dequantize_gguf(default_gguf, tmp_path)
    whole, cut = (Model(str(tmp_path), max_tokens=512, num_ranks=n) for n in (1, 3))
    tokenizer = load_tokenizer(str(default_gguf))
    ids = tokenizer.encode(PROSE.read_text())[:300]
    ours = cut.forward(ids)
    assert relative_error(ours, whole.forward(ids)) < F32_ROUNDING
    for prompt in ("The capital of France is", "Once upon a time,", "def fibonacci(n):\n"):
        assert greedy(cut, tokenizer.encode(prompt)) == greedy(whole, tokenizer.encode(prompt))


def test_the_default_file_over_three_ranks(default_gguf: Path) -> None:
    # Its blocks take int8 activations, where a sum of another order can move a value by a step;
    # what that costs is what the steps cost one device, no more.
    whole, cut = (Model(str(default_gguf), num_ranks=n) for n in (1, 3))
    assert cut.info["weight_bytes"] < 0.35 * whole.info["weight_bytes"]
    ids = load_tokenizer(str(default_gguf)).encode(PROSE.read_text())
    assert abs(perplexity(cut, ids) / perplexity(whole, ids) - 1.0) < 0.01
    chunks = [19, 1, 28]
    np.testing.assert_array_equal(cut.forward(ids[:48], chunk_sizes=chunks), cut.forward(ids[:48]))
    with pytest.raises(InputError, match=r"9 query heads can't be split over 2 ranks.*: 1, 3$"):
        Model(str(default_gguf), num_ranks=2)
