"""The prefix cache changes no token: bit for bit, with penalties, seeds and several completions,
also where sequences are preempted and over two ranks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minisgl import LLM, SamplingParams
from minisgl.ipc.messages import EngineStats
from tests.python.running.tiny_model import make_model_of, make_tiny_model

NUM_CHATS, NUM_TURNS = 6, 3
SYSTEM = [(31 * i) % 200 + 1 for i in range(75)]


@pytest.fixture(scope="module", params=["llama", "gpt_oss", "fp8"])
def tiny(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    return make_model_of(request.param, tmp_path_factory.mktemp("prefix") / "tiny")


def params(chat: int) -> SamplingParams:
    return SamplingParams(
        n=2,
        seed=chat,
        temperature=0.9 if chat % 2 else 0.0,
        repetition_penalty=1.2 if chat % 3 == 0 else 1.0,
        frequency_penalty=0.2 if chat % 3 == 1 else 0.0,
        prompt_logprobs=1 if chat == 5 else None,
        max_tokens=20 + 3 * chat,
        ignore_eos=True,
    )


def converse(
    model: Path, turns: int = NUM_TURNS, **options: Any
) -> tuple[list[Any], list[int], EngineStats]:
    """Chats that share a system prompt: the completions of each turn, what was cached of the
    prompts, and the engine's counts.
    """
    prompts = [[*SYSTEM, *(7 + chat + k for k in range(10 + chat))] for chat in range(NUM_CHATS)]
    said: list[Any] = []
    cached: list[int] = []
    with LLM(str(model), device="cpu", num_threads=2, show_progress=False, **options) as llm:
        for turn in range(turns):
            every = [params(chat) for chat in range(NUM_CHATS)]
            results = llm.generate(prompts, every, use_tqdm=False)
            said.append([[one.token_ids for one in result.outputs] for result in results])
            said.append(results[5].prompt_logprobs)
            cached += [result.num_cached_tokens for result in results]
            for chat, result in enumerate(results):
                prompts[chat] = [*prompts[chat], *result.outputs[turn % 2].token_ids, 3 + chat, 4]
        stats = llm.stats()
    assert stats.pages_free == stats.pages_total
    return said, cached, stats


@pytest.fixture(scope="module")
def without(tiny: Path) -> list[Any]:
    said, cached, stats = converse(tiny, disable_prefix_cache=True)
    assert not any(cached)
    assert (stats.prefix_queries, stats.pages_cached) == (0, 0)
    return said


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="as it is"),
        pytest.param({"page_size": 1}, id="pages of one token"),
        pytest.param({"max_batch_tokens": 32}, id="prompts in chunks"),
        pytest.param({"kv_cache_tokens": 448}, id="preempted"),
        pytest.param({"tp": 2}, id="two ranks"),
    ],
)
def test_the_same_tokens_with_and_without(
    tiny: Path, without: list[Any], options: dict[str, Any]
) -> None:
    said, cached, stats = converse(tiny, **options)
    if "tp" in options:  # sums over ranks have an order of their own: to itself alone
        without, _, _ = converse(tiny, disable_prefix_cache=True, **options)
    assert said == without
    assert (stats.num_preemptions > 0) == ("kv_cache_tokens" in options)
    assert (stats.prefix_evictions > 0) == ("kv_cache_tokens" in options)
    if "kv_cache_tokens" in options:
        return
    firsts, last = cached[:NUM_CHATS], cached[-NUM_CHATS:]
    assert firsts[0] == 0
    assert all(count >= 64 for count in firsts[1:5])  # chats that came together
    assert all(count > 120 for count in last[:5])  # the conversation so far
    assert not any(count for count in cached[5::NUM_CHATS])  # every row of its prompt is wanted


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"kv_cache_tokens": 448}, id="preempted"),
        pytest.param({"tp": 2}, id="two ranks"),
    ],
)
def test_the_same_tokens_from_a_cache_of_8_bits(
    tiny: Path, without: list[Any], options: dict[str, Any]
) -> None:
    ranks = {"tp": options["tp"]} if "tp" in options else {}
    said, cached, stats = converse(tiny, kv_dtype="int8", **options)
    alone, _, _ = converse(tiny, kv_dtype="int8", disable_prefix_cache=True, **ranks)
    assert said == alone
    assert said != without  # what is stored is rounded
    assert (stats.num_preemptions > 0) == ("kv_cache_tokens" in options)
    assert max(cached) > 64


def test_windows_that_end_within_the_prefix(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny", family="mistral", sliding_window=40)
    without, _, _ = converse(model, disable_prefix_cache=True)
    said, cached, _ = converse(model, max_batch_tokens=32)
    assert said == without
    assert all(count > 120 for count in cached[-NUM_CHATS:-1])


def test_the_default_model_says_the_same(default_gguf: Path) -> None:
    without, _, _ = converse(default_gguf, turns=2, disable_prefix_cache=True)
    said, cached, _ = converse(default_gguf, turns=2)
    assert said == without
    assert all(count > 100 for count in cached[NUM_CHATS:-1])


def test_salts_share_nothing(tiny: Path) -> None:
    def cached(salt: str | None) -> int:
        results = llm.generate(
            SYSTEM, SamplingParams(max_tokens=1), cache_salt=salt, use_tqdm=False
        )
        return results[0].num_cached_tokens

    with LLM(str(tiny), device="cpu", num_threads=2, show_progress=False) as llm:
        assert cached(None) == 0
        assert cached("one") == 0
        assert cached("other") == 0
        assert all(cached(salt) > 60 for salt in (None, "one", "other", ""))
