"""LLM over an engine that pretends: prompts in every form, parameters, stops, errors, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from minisgl import LLM, SamplingParams
from minisgl.model_files.files import ModelError
from minisgl.offline.local_model import EngineError
from minisgl.offline.results import TokenLogprob
from tests.python.offline.fake_native import (
    EOS,
    MAX_MODEL_LEN,
    VOCAB_SIZE,
    FakeEngine,
    FakeNative,
    InputError,
)


@pytest.fixture
def llm(native: FakeNative, model: str) -> Iterator[LLM]:
    with LLM(model, show_progress=False) as llm:
        yield llm


def engine_of(native: FakeNative) -> FakeEngine:
    assert native.engine is not None
    return native.engine


def generate(llm: LLM, prompts: Any, params: Any = None) -> Any:
    return llm.generate(prompts, params, use_tqdm=False)


def test_one_text(llm: LLM) -> None:
    text = "the quick brown fox"
    ids = llm.tokenizer.encode(text)
    (result,) = generate(llm, text, SamplingParams(max_tokens=2 * len(ids)))
    assert result.prompt == text
    assert result.prompt_token_ids == ids
    (output,) = result.outputs
    assert output.text == text * 2
    assert output.token_ids == ids * 2
    assert output.finish_reason == "length"
    assert output.logprobs is None
    assert result.prompt_logprobs is None


@pytest.mark.parametrize(
    ("prompts", "ids"),
    [
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
        ([(5, 6), "a"], [[5, 6], None]),
        (["a", "b", "c"], [None] * 3),
        ({"prompt": "a"}, [None]),
        ({"prompt_token_ids": [5, 6]}, [[5, 6]]),
        ([{"prompt_token_ids": (5, 6), "cache_salt": "x"}, "a", [7]], [[5, 6], None, [7]]),
        ([], []),
    ],
)
def test_forms_of_prompts(llm: LLM, prompts: Any, ids: list[list[int] | None]) -> None:
    results = generate(llm, prompts)
    assert len(results) == len(ids)
    for result, expected in zip(results, ids, strict=True):
        if expected is None:
            assert result.prompt_token_ids == llm.tokenizer.encode(result.prompt)
        else:
            assert (result.prompt, result.prompt_token_ids) == (None, expected)


def test_results_keep_the_order_of_prompts(llm: LLM) -> None:
    lengths = [30, 1, 20, 2, 10]
    params = [SamplingParams(max_tokens=length) for length in lengths]
    results = generate(llm, [[10 + i] for i in range(5)], params)
    assert [len(result.outputs[0].token_ids) for result in results] == lengths
    assert [result.outputs[0].token_ids[0] for result in results] == [10, 11, 12, 13, 14]


def test_a_stop_token_is_an_id_but_no_text(llm: LLM, native: FakeNative) -> None:
    engine_of(native).script = lambda request: [*llm.tokenizer.encode("done"), EOS]
    output = generate(llm, "x", SamplingParams(max_tokens=50))[0].outputs[0]
    assert (output.text, output.finish_reason, output.token_ids[-1]) == ("done", "stop", EOS)


def test_end_tokens_that_only_the_files_name(llm: LLM, native: FakeNative) -> None:
    engine_of(native).script = lambda request: [50, 2]  # 2 stands in generation_config.json
    assert generate(llm, "x")[0].outputs[0].finish_reason == "stop"
    output = generate(llm, "x", SamplingParams(ignore_eos=True, max_tokens=9))[0].outputs[0]
    assert output.finish_reason == "length"


def test_a_stop_string_ends_the_request(llm: LLM, native: FakeNative) -> None:
    text = "one two END three four five six seven eight"
    engine_of(native).script = lambda request: llm.tokenizer.encode(text)
    params = SamplingParams(max_tokens=150, stop=["END"], logprobs=0)
    output = generate(llm, "x", params)[0].outputs[0]
    assert output.text == "one two "
    assert output.finish_reason == "stop"
    assert len(engine_of(native).aborted) == 1
    assert llm.tokenizer.decode(output.token_ids).startswith("one two END")
    assert "END" not in llm.tokenizer.decode(output.token_ids[:-1])
    assert len(output.logprobs) == len(output.token_ids)
    assert len(generate(llm, "again")) == 1  # the engine is free for more


def test_why_a_completion_ended(llm: LLM, native: FakeNative) -> None:
    special = llm.tokenizer.encode("<|im_start|>")
    engine_of(native).script = lambda request: [*llm.tokenizer.encode("done\n"), *special, 70]
    for params, expected in (
        (SamplingParams(max_tokens=50, stop=["\n<|im_start|>"]), ("done", "\n<|im_start|>")),
        (SamplingParams(max_tokens=50, stop_token_ids=special), ("done\n", special[0])),
        (
            SamplingParams(max_tokens=2),
            (llm.tokenizer.decode(llm.tokenizer.encode("done\n")[:2]), None),
        ),
    ):
        output = generate(llm, "x", params)[0].outputs[0]
        assert (output.text, output.stop_reason) == expected


def test_a_text_cut_within_a_character(llm: LLM, native: FakeNative) -> None:
    ids = llm.tokenizer.encode("a\U0001f701")
    engine_of(native).script = lambda request: ids
    output = generate(llm, "x", SamplingParams(max_tokens=len(ids) - 1))[0].outputs[0]
    assert (output.text, output.token_ids) == ("a", ids[:-1])


def test_a_stop_string_with_the_last_token(llm: LLM, native: FakeNative) -> None:
    ids = llm.tokenizer.encode("a END")
    engine_of(native).script = lambda request: ids
    params = SamplingParams(max_tokens=len(ids), stop=["END"])
    output = generate(llm, "x", params)[0].outputs[0]
    assert (output.text, output.finish_reason) == ("a ", "stop")
    assert engine_of(native).aborted == []


def test_a_stop_string_before_min_tokens_ends_nothing(llm: LLM, native: FakeNative) -> None:
    early, late = llm.tokenizer.encode("a END b"), llm.tokenizer.encode(" END c")
    engine_of(native).script = lambda request: early + late
    params = SamplingParams(max_tokens=150, min_tokens=len(early), stop=["END"])
    output = generate(llm, "x", params)[0].outputs[0]
    assert (output.text, output.finish_reason) == ("a END b ", "stop")


def test_logprobs(llm: LLM) -> None:
    params = SamplingParams(max_tokens=3, logprobs=2, prompt_logprobs=0, n=2)
    (result,) = generate(llm, [40, 41], params)
    assert result.prompt_logprobs == [TokenLogprob(40, None, []), TokenLogprob(41, -1.0, [])]
    for output in result.outputs:
        assert [entry.token_id for entry in output.logprobs] == [40, 41, 40]
        assert output.logprobs[0].alternatives == [(40, -0.5)] * 2


def test_an_unknown_option_is_a_type_error_and_a_bad_one_a_value_error(model: str) -> None:
    with pytest.raises(TypeError, match="LLM has no option 'max_runing'; it has num_threads, "):
        LLM(model, max_runing=4)
    with pytest.raises(ValueError, match="page_size must be a power of two, got 12"):
        LLM(model, page_size=12)
    with pytest.raises(ValueError, match="memory_fraction must be between 0.01 and 1, got 2"):
        LLM(model, memory_fraction=2)
    with pytest.raises(ValueError, match="^reasoning_parser must be auto, none or one of .*'mine'"):
        LLM(model, reasoning_parser="mine")


def test_sampling_that_the_model_publishes(native: FakeNative, model: str) -> None:
    published = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    (Path(model) / "generation_config.json").write_text(json.dumps(published))
    names = ["temperature", "top_k", "top_p", "max_tokens"]

    def run(**options: Any) -> list[list[float]]:
        with LLM(model, show_progress=False, **options) as llm:
            generate(llm, "x")
            llm.chat([{"role": "user", "content": "hi"}], use_tqdm=False)
            generate(llm, "x", SamplingParams(top_k=3))
            changed = msgspec.structs.replace(llm.get_default_sampling_params(), max_tokens=2)
            generate(llm, "x", changed)
        return [[request[name] for name in names] for request in engine_of(native).requests]

    first, chat, explicit, changed = run()
    assert first == [0.6, 20, 0.95, 16]
    assert chat[:3] == [0.6, 20, 0.95]
    assert chat[3] > 16
    assert explicit == [1.0, 3, 1.0, 16]
    assert changed == [0.6, 20, 0.95, 2]
    for off in ("none", "vllm"):
        assert run(generation_config=off)[0] == [1.0, 0, 1.0, 16]
    with pytest.raises(ValueError, match="generation_config must be one of auto, none, vllm, got"):
        LLM(model, generation_config="mine")


def test_bad_words_reach_the_engine_as_tokens(llm: LLM, native: FakeNative) -> None:
    generate(llm, "x", SamplingParams(bad_words=["ab"], allowed_token_ids=[5, 6], n=2))
    words = [llm.tokenizer.encode(text, add_special_tokens=False) for text in ("ab", " ab")]
    requests = engine_of(native).requests
    assert [request["bad_words"] for request in requests] == [words] * 2
    assert [request["allowed_token_ids"] for request in requests] == [[5, 6]] * 2


def test_n_completions_have_seeds_of_their_own(llm: LLM, native: FakeNative) -> None:
    (result,) = generate(llm, "x", SamplingParams(n=3, seed=2**64 - 1))
    assert [output.index for output in result.outputs] == [0, 1, 2]
    assert [request["seed"] for request in engine_of(native).requests] == [2**64 - 1, 0, 1]


def test_thousands_of_prompts_stay_within_the_queue(llm: LLM, native: FakeNative) -> None:
    results = generate(llm, [[1 + i % 400] for i in range(5000)], SamplingParams(max_tokens=1))
    assert len(results) == 5000
    assert engine_of(native).most_live == engine_of(native).options["max_waiting"]


def test_requests_that_run_do_not_count_as_waiting(native: FakeNative, model: str) -> None:
    with LLM(model, show_progress=False, max_running=3, max_waiting=0) as llm:
        results = generate(llm, [[1 + i] for i in range(20)], SamplingParams(max_tokens=2))
    assert len(results) == 20
    assert engine_of(native).most_live == 3


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ("", None, "the prompt is empty"),
        ([[3], []], None, "prompt 1: the prompt is empty"),
        ([VOCAB_SIZE], None, f"between 0 and {VOCAB_SIZE - 1}, got {VOCAB_SIZE}"),
        ([-1], None, "got -1"),
        ([1] * 190, None, f"more than the {MAX_MODEL_LEN} tokens"),
        ("x", SamplingParams(stop_token_ids=[VOCAB_SIZE]), "stop_token_ids must hold"),
        (["a", "b"], [SamplingParams()], r"one per prompt \(2\), got 1"),
        (["a", "b"], [], r"one per prompt \(2\), got 0"),
        ("a", (), r"one per prompt \(1\), got 0"),
        ("a", {}, "must be SamplingParams or a list, got {}"),
        ("a", 0, "must be SamplingParams or a list, got 0"),
        ("a", [{"max_tokens": 3}], "must be SamplingParams or a list, got .{'max_tokens': 3}"),
        (["a", 5], None, "prompt 1 must be text or a list of token ids, got 5"),
        ([[True]], None, "prompt 0 must be text"),
        ([[1.5]], None, "prompt 0 must be text"),
        ("a\ud800", None, "lone surrogate"),
    ],
)
def test_bad_requests_run_nothing(
    llm: LLM, native: FakeNative, prompts: Any, params: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(llm, prompts, params)
    assert engine_of(native).requests == []


def test_chat(llm: LLM, native: FakeNative) -> None:
    messages = [{"role": "user", "content": "hi"}]
    (result,) = llm.chat(messages, SamplingParams(max_tokens=1), use_tqdm=False)
    assert result.prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert result.prompt_token_ids[0] == 1
    results = llm.chat([messages, messages], use_tqdm=False)
    assert len(results) == 2
    request = engine_of(native).requests[-1]
    assert request["max_tokens"] == MAX_MODEL_LEN - len(request["prompt"])
    assert llm.chat([], use_tqdm=False) == []


def test_an_error_of_one_request_ends_the_others(llm: LLM, native: FakeNative) -> None:
    engine = engine_of(native)

    def refuse_once() -> None:
        engine.on_take = lambda: None
        engine.refuse(engine.requests[1]["id"], "queue_full", "out of pages")

    engine.on_take = refuse_once
    with pytest.raises(EngineError, match="out of pages"):
        generate(llm, ["a", "b", "c"], SamplingParams(max_tokens=100))
    assert len(engine.aborted) == 2
    assert len(generate(llm, ["a", "b"])) == 2


def test_ctrl_c_aborts_what_lives(llm: LLM, native: FakeNative) -> None:
    engine = engine_of(native)
    steps = iter(range(3))

    def interrupt() -> None:
        if next(steps) == 2:
            engine.on_take = lambda: time.sleep(0.01)  # the signal has time to arrive
            os.kill(os.getpid(), signal.SIGINT)

    engine.on_take = interrupt
    with pytest.raises(KeyboardInterrupt):
        generate(llm, ["a", "b"], SamplingParams(max_tokens=100))
    assert len(engine.aborted) == 2
    assert generate(llm, "x", SamplingParams(max_tokens=2))[0].outputs[0].finish_reason == "length"


@pytest.mark.parametrize("speaks", [True, False])
def test_a_dead_engine(
    llm: LLM, native: FakeNative, monkeypatch: pytest.MonkeyPatch, speaks: bool
) -> None:
    engine = engine_of(native)

    def die() -> list[Any]:
        engine.failed = "bad_alloc in step 3"
        return []

    if speaks:
        monkeypatch.setattr(engine, "take_outputs", die)
    else:  # it dies without a word, and the loop looks after it in its own time
        time.sleep(1.1)
        monkeypatch.setattr(engine, "submit", lambda request: die())
    for _ in range(2):
        with pytest.raises(EngineError, match="bad_alloc in step 3"):
            generate(llm, "a")


def test_close(native: FakeNative, model: str) -> None:
    llm = LLM(model, show_progress=False, num_threads=3, max_model_len=64)
    assert engine_of(native).options["num_threads"] == 3
    assert llm.info.max_model_len == 64
    llm.close()
    llm.close()
    assert engine_of(native).stopped
    with pytest.raises(RuntimeError, match="closed"):
        generate(llm, "x")


def test_an_engine_that_nobody_has_any_more_ends(native: FakeNative, model: str) -> None:
    llm = LLM(model, show_progress=False)
    generate(llm, "x")
    del llm
    assert engine_of(native).stopped


@pytest.mark.parametrize(
    ("error", "message"),
    [(InputError("q.weight is truncated."), "q.weight"), (MemoryError(), "not enough memory")],
)
def test_models_that_do_not_load(
    native: FakeNative, model: str, error: Exception, message: str
) -> None:
    native.error = error
    with pytest.raises(ModelError, match=message):
        LLM(model, show_progress=False)


def test_progress_bar(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["a", "b"])
    assert "2/2" in capsys.readouterr().err
    llm.generate(["a", "b"], use_tqdm=False)
    assert capsys.readouterr().err == ""


def test_priorities(llm: LLM, native: FakeNative) -> None:
    llm.generate(["a", "b"], SamplingParams(n=2), priority=[3, -100], use_tqdm=False)
    llm.generate("a", SamplingParams(), priority=7, use_tqdm=False)
    llm.generate("a", SamplingParams(), use_tqdm=False)
    priorities = [request["priority"] for request in engine_of(native).requests]
    assert sorted(priorities) == [-100, -100, 0, 3, 3, 7]
    for wrong in (101, -101, True, None, 0.5, [1, 2], [0.5], ["1"]):
        with pytest.raises(ValueError, match="priority"):
            llm.generate("a", SamplingParams(), priority=wrong, use_tqdm=False)  # type: ignore[arg-type]
    assert len(engine_of(native).requests) == 6


def test_salts(llm: LLM, native: FakeNative) -> None:
    """One for all or one per prompt; a prompt's own comes first. None and "" are no salt."""

    def salts(prompts: Any, **arguments: Any) -> list[bytes | None]:
        before = len(engine_of(native).requests)
        llm.generate(prompts, SamplingParams(max_tokens=1), use_tqdm=False, **arguments)
        return [request.get("prefix_salt") for request in engine_of(native).requests[before:]]

    (one,), (other,) = salts("a", cache_salt="one"), salts("a", cache_salt="other")
    assert one
    assert other
    assert one != other
    assert salts(["a", "b"], cache_salt="one") == [one, one]
    assert salts(["a", "b", "c"], cache_salt=["one", None, ""]) == [one, None, None]
    prompts = [{"prompt": "a", "cache_salt": "other"}, {"prompt_token_ids": [5]}, "b"]
    assert salts(prompts, cache_salt="one") == [other, one, one]
    assert salts(prompts) == [other, None, None]
    chats = [[{"role": "user", "content": text}] for text in ("a", "b")]
    llm.chat(chats, SamplingParams(max_tokens=1, n=2), cache_salt=["one", "other"], use_tqdm=False)
    of_chats = [request.get("prefix_salt") for request in engine_of(native).requests[-4:]]
    assert sorted(of_chats) == sorted([one, one, other, other])


@pytest.mark.parametrize(
    ("prompts", "salt", "message"),
    [
        ("a", 5, "cache_salt"),
        ("a", ["x", "y"], "cache_salt"),
        (["a", "b"], ["x", 5], "cache_salt must be text, got 5"),
        ({"prompt": "a", "cache_salt": 5}, None, "cache_salt must be text, got 5"),
        ({"prompt": "a", "prompt_token_ids": [5]}, None, "either 'prompt' or"),
        (["a", {}], None, "prompt 1 must have either 'prompt' or"),
        ({"prompt": "a", "multi_modal_data": {}}, None, "got 'prompt', 'multi_modal_data'"),
        ({"prompt": 5}, None, "must be text or a list of token ids, got 5"),
    ],
)
def test_wrong_salts_and_prompts_run_nothing(
    llm: LLM, native: FakeNative, prompts: Any, salt: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        llm.generate(prompts, SamplingParams(), cache_salt=salt, use_tqdm=False)
    assert not engine_of(native).requests
