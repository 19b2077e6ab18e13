"""LLM.embed and LLM.score over random models, beside the hidden states of transformers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from minisgl import LLM, PoolingParams, SamplingParams
from minisgl.sampling_params import ParameterError
from tests.python.models.tiny_models import (
    normalized,
    relative_error,
    token_ids,
    transformers_hidden,
)
from tests.python.running.tiny_model import make_tiny_model

MAX_MODEL_LEN = 2048
F32_TOLERANCE = 1e-4
PROMPTS = [token_ids(length, seed=length) for length in (1, 5, 64, 300, MAX_MODEL_LEN)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("embeddings") / "tiny")


def open_llm(folder: Path, tp: int = 1) -> LLM:
    return LLM(
        str(folder),
        tp=tp,
        device="cpu",
        show_progress=False,
        num_threads=2,
        max_model_len=MAX_MODEL_LEN,
        kv_cache_tokens=2 * MAX_MODEL_LEN,
    )


@pytest.fixture(scope="module", params=[1, 2])
def llm(folder: Path, request: pytest.FixtureRequest) -> Iterator[LLM]:
    """On one rank, and on two."""
    with open_llm(folder, request.param) as llm:
        yield llm


def embeddings(
    llm: LLM, prompts: list[list[int]], params: PoolingParams | None = None
) -> np.ndarray:
    results = llm.embed(prompts, params, use_tqdm=False)
    assert [result.prompt_token_ids for result in results] == prompts
    return np.array([result.outputs.embedding for result in results], dtype=np.float32)


def test_last_and_mean_are_those_of_transformers(llm: LLM, folder: Path) -> None:
    last = embeddings(llm, PROMPTS)
    mean = embeddings(llm, PROMPTS, PoolingParams(pooling="mean"))
    raw = embeddings(llm, PROMPTS, PoolingParams(pooling="mean", normalize=False))
    cut = embeddings(llm, PROMPTS, PoolingParams(dimensions=20))
    for i, prompt in enumerate(PROMPTS):
        states = transformers_hidden(folder, prompt)
        assert relative_error(last[i], normalized(states[-1])) < F32_TOLERANCE
        assert relative_error(mean[i], normalized(states.mean(0))) < F32_TOLERANCE
        assert relative_error(raw[i], states.mean(0)) < F32_TOLERANCE
        assert relative_error(cut[i], normalized(states[-1, :20])) < F32_TOLERANCE


def test_a_model_that_was_saved_without_its_head(tmp_path: Path) -> None:
    whole = make_tiny_model(tmp_path / "whole", family="qwen3")
    bare = tmp_path / "bare"
    shutil.copytree(whole, bare)
    model = AutoModel.from_pretrained(whole, dtype=torch.float32)
    model.save_pretrained(bare)
    assert model.config.architectures == ["Qwen3Model"]
    prompt = token_ids(80)
    states = transformers_hidden(whole, prompt)
    with open_llm(bare) as llm:
        (last,) = embeddings(llm, [prompt])
        (mean,) = embeddings(llm, [prompt], PoolingParams(pooling="mean"))
    assert relative_error(last, normalized(states[-1])) < F32_TOLERANCE
    assert relative_error(mean, normalized(states.mean(0))) < F32_TOLERANCE


def test_the_last_token_alone_is_computed_behind_a_cached_prefix(llm: LLM) -> None:
    prompt = token_ids(401, seed=7)
    (first,) = llm.embed(prompt, use_tqdm=False)
    (again,) = llm.embed(prompt, use_tqdm=False)
    (mean,) = llm.embed(prompt, PoolingParams(pooling="mean"), use_tqdm=False)
    assert (first.num_cached_tokens, again.num_cached_tokens, mean.num_cached_tokens) == (0, 400, 0)
    assert np.dot(first.outputs.embedding, again.outputs.embedding) == pytest.approx(1)


def test_scores_are_cosines(llm: LLM) -> None:
    one, *others = PROMPTS[1:]
    vectors = embeddings(llm, [one, *others])
    scores = [result.outputs.score for result in llm.score(one, others, use_tqdm=False)]
    assert scores == pytest.approx([float(vectors[0] @ other) for other in vectors[1:]], abs=1e-6)
    (pair,) = llm.score("one text", ["one text"], use_tqdm=False)
    assert pair.outputs.score == pytest.approx(1)
    with pytest.raises(ParameterError, match=r"as many as text_2 \(3\), got 2"):
        llm.score(["a", "b"], ["c", "d", "e"], use_tqdm=False)
    assert llm.score([], [], use_tqdm=False) == []
    assert llm.score("a", [], use_tqdm=False) == []


def test_what_cannot_be_served_is_named(llm: LLM) -> None:
    with pytest.raises(ParameterError, match="dimensions must be between 1 and 64.* got 65"):
        llm.embed("text", PoolingParams(dimensions=65), use_tqdm=False)
    with pytest.raises(ParameterError, match="prompt 1: the prompt has 2049 tokens"):
        llm.embed(["text", [1] * (MAX_MODEL_LEN + 1)], use_tqdm=False)
    with pytest.raises(ParameterError, match="pooling must be last or mean, got 'first'"):
        PoolingParams(pooling="first")
    with pytest.raises(ParameterError, match="max_tokens must be 0 where pooling is given, got 16"):
        SamplingParams(pooling=PoolingParams())
    with pytest.raises(ParameterError, match="embed"):
        llm.generate("text", SamplingParams(max_tokens=0, pooling=PoolingParams()), use_tqdm=False)
