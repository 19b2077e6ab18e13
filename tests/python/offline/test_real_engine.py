"""LLM with the real engine and the default model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from minisgl import LLM, SamplingParams


@pytest.fixture(scope="module")
def llm(default_gguf: Path) -> Iterator[LLM]:
    path = str(default_gguf)
    with LLM(path, device="cpu", show_progress=False, num_threads=2, kv_cache_tokens=4096) as llm:
        yield llm


GREEDY = SamplingParams(temperature=0, max_tokens=12)


def test_the_capital_of_france(llm: LLM) -> None:
    (result,) = llm.generate("The capital of France is", GREEDY, use_tqdm=False)
    assert result.outputs[0].text.startswith(" Paris")
    assert result.outputs[0].finish_reason == "length"
    assert len(result.outputs[0].token_ids) == 12


def test_chat_ends_by_itself(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    params = SamplingParams(temperature=0, max_tokens=200)
    output = llm.chat(messages, params, use_tqdm=False)[0].outputs[0]
    assert output.finish_reason == "stop"
    assert output.token_ids[-1] == 2
    assert "hello" in output.text.lower()
    assert "<|im_end|>" not in output.text


def test_a_batch_gives_what_each_prompt_gives_alone(llm: LLM) -> None:
    prompts = ["Once upon a time", "def fibonacci(n):", "1, 2, 3, 4,", "Große Worte: "]
    params = SamplingParams(temperature=0.8, seed=7, max_tokens=16)
    together = llm.generate(prompts, params, use_tqdm=False)
    alone = [llm.generate(prompt, params, use_tqdm=False)[0] for prompt in prompts]
    assert [r.outputs[0].token_ids for r in together] == [r.outputs[0].token_ids for r in alone]


def test_stop_string_and_logprobs(llm: LLM) -> None:
    params = SamplingParams(
        temperature=0, max_tokens=60, stop=[", 9"], logprobs=2, prompt_logprobs=1
    )
    (result,) = llm.generate("1, 2, 3, 4, 5,", params, use_tqdm=False)
    output = result.outputs[0]
    assert output.text == " 6, 7, 8"
    assert output.finish_reason == "stop"
    assert output.logprobs is not None
    assert len(output.logprobs) == len(output.token_ids)
    for entry in output.logprobs:
        assert entry.logprob is not None
        assert entry.alternatives[0] == (entry.token_id, pytest.approx(entry.logprob))
        assert len(entry.alternatives) == 2
    assert result.prompt_logprobs is not None
    assert [entry.token_id for entry in result.prompt_logprobs] == result.prompt_token_ids
    assert result.prompt_logprobs[0].logprob is None


def test_n_samples_differ(llm: LLM) -> None:
    params = SamplingParams(n=4, seed=1, max_tokens=20)
    (result,) = llm.generate("My favourite word is", params, use_tqdm=False)
    assert len({output.text for output in result.outputs}) > 1
