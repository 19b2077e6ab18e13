"""The engine through its binding, on a random small model: what goes in, what comes out."""

from __future__ import annotations

import dataclasses
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from minisgl._native import Engine, InputError, Model
from minisgl.ipc.messages import EngineOptions, Submit
from minisgl.sampling_params import SamplingParams, ThoughtFormat
from tests.python.models.tiny_models import save_random_model, tiny_config, token_ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tiny_config("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    engine = Engine(str(folder), device="cpu", num_threads=2, page_size=4, kv_cache_tokens=512)
    engine.start()
    yield engine
    engine.stop()


def run(engine: Engine, *requests: dict[str, Any]) -> dict[int, list[Any]]:
    """Submits, and returns the outputs by request when all have ended."""
    for request in requests:
        engine.submit(request)
    outputs: dict[int, list[Any]] = {request["id"]: [] for request in requests}
    num_ended = 0
    while num_ended < len(requests):
        readable, _, _ = select.select([engine.event_fd()], [], [], 60)
        assert readable
        for output in engine.take_outputs():
            outputs[output[0]].append(output)
            num_ended += output[2] != ""
    return outputs


def tokens(outputs: list[Any]) -> list[int]:
    return [token for output in outputs for token in output[1]]


def test_greedy_tokens_are_the_models(engine: Engine, folder: Path) -> None:
    prompt = token_ids(30)
    request = {"id": 1, "prompt": prompt, "max_tokens": 20, "temperature": 0.0, "ignore_eos": True}
    outputs = run(engine, request)[1]
    model = Model(str(folder))
    expected: list[int] = []
    for _ in range(20):
        expected.append(int(np.argmax(model.forward(prompt + expected)[-1])))
    assert tokens(outputs) == expected
    assert outputs[-1][2:5] == ("length", "", "")
    assert all(output[5] is None and output[6] is None for output in outputs)
    assert all(output[7] is None for output in outputs[:-1])
    assert all(seconds >= 0 for seconds in outputs[-1][7])


@pytest.mark.parametrize("options", [{}, {"kv_cache_tokens": 100}, {"max_batch_tokens": 7}])
def test_company_preemption_and_chunks_change_no_token(
    engine: Engine, folder: Path, options: dict[str, int]
) -> None:
    requests = [
        {
            "id": i,
            "prompt": token_ids(5 + 3 * i, seed=i),
            "max_tokens": 40,
            "seed": i,
            "ignore_eos": True,
            "temperature": 0.8,
            "top_p": 0.9,
            "repetition_penalty": 1.1,
        }
        for i in range(16)
    ]
    alone = [tokens(run(engine, request)[request["id"]]) for request in requests]
    crowded = Engine(str(folder), device="cpu", num_threads=2, page_size=4, **options)
    crowded.start()
    together = run(crowded, *requests)
    assert [tokens(together[i]) for i in range(16)] == alone
    stats = crowded.stats()
    assert (stats["num_preemptions"] > 0) == ("kv_cache_tokens" in options)
    assert stats["pages_free"] == stats["pages_total"]
    assert stats["num_running"] == stats["num_waiting"] == 0
    crowded.stop()


def test_logprobs(engine: Engine, folder: Path) -> None:
    prompt = token_ids(10)
    request = {"id": 1, "prompt": prompt, "max_tokens": 2, "temperature": 0.0, "ignore_eos": True}
    outputs = run(engine, request | {"logprobs": 2, "prompt_logprobs": 1})[1]
    logits = Model(str(folder)).forward(prompt).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    scored = outputs[0][6]
    assert [entry[0] for entry in scored] == prompt
    assert scored[0][1:] == (None, [])
    for position in range(1, 10):
        token, logprob, top = scored[position]
        assert logprob == pytest.approx(expected[position - 1, token], abs=1e-4)
        assert [entry[0] for entry in top] == [int(np.argmax(expected[position - 1]))]
    (logprob, top), *_ = outputs[0][5]
    assert logprob == pytest.approx(expected[-1].max(), abs=1e-4)
    assert [entry[0] for entry in top] == np.argsort(-expected[-1])[:2].tolist()
    assert outputs[1][6] is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"id": "1"}, TypeError, "id must be an integer, got str"),
        ({"id": -1}, ValueError, "id must be between 0 and 18446744073709551615"),
        ({"id": True}, TypeError, "id must be an integer, got bool"),
        ({"prompt": "text"}, TypeError, "prompt must be a list, got str"),
        ({"prompt": None}, TypeError, "prompt must be a list, got NoneType"),
        ({"prompt": [1, 2.0]}, TypeError, "prompt must be an integer, got float"),
        ({"prompt": [2**31]}, ValueError, "prompt must be between -2147483648 and 2147483647"),
        ({"max_tokens": 2**70}, ValueError, "max_tokens must be between"),
        ({"seed": 2**64}, ValueError, "seed must be between"),
        ({"temperature": "0.5"}, TypeError, "temperature must be a number, got str"),
        ({"temperature": True}, TypeError, "temperature must be a number, got bool"),
        ({"temperature": 10**400}, ValueError, "temperature is too large"),
        ({"ignore_eos": 1}, TypeError, "ignore_eos must be a bool, got int"),
        (
            {"logit_bias": [(1, 2)]},
            TypeError,
            "logit_bias must be a dict",
        ),
        ({"logit_bias": {"1": 2}}, TypeError, "logit_bias must be an integer, got str"),
        ({"logit_bias": {1: "2"}}, TypeError, "logit_bias must be a number, got str"),
        ({"thought_moves": [1]}, TypeError, "thought_moves must be bytes, got list"),
        ({"thought_moves": b"123"}, ValueError, "thought_moves has 12 bytes per move, got 3"),
        ({"tempreature": 1.0}, TypeError, "unknown field 'tempreature'"),
        ({3: 1.0}, TypeError, "a key of the request must be a str, got int"),
    ],
)
def test_malformed_requests_raise(
    engine: Engine, change: dict[Any, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        engine.submit({"id": 1, "prompt": [1]} | change)
    assert engine.take_outputs() == []


def test_every_sampling_parameter_is_read(engine: Engine) -> None:
    params = SamplingParams(
        max_tokens=3, min_tokens=1, temperature=0.5, top_k=-1, top_p=0.9, min_p=0.01,
        repetition_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.1, logit_bias={3: 1.0},
        allowed_token_ids=[3, 4],
        thinking_token_budget=2,
        thought=ThoughtFormat(thoughts=[0], moves=struct.pack("3i", 0, 1, -1), closings=[[3]]),
        seed=2**64 - 1, stop=["x"], stop_token_ids=[4], ignore_eos=True, logprobs=1,
        prompt_logprobs=1, skip_special_tokens=False, speculate=False,
    )  # fmt: skip
    defaults = SamplingParams()
    fields = params.__struct_fields__
    params = msgspec.structs.replace(params, bad_words=["x"])
    same = [name for name in fields if getattr(params, name) == getattr(defaults, name)]
    # A form is for the server, and becomes a grammar, which offline/test_grammar.py is about;
    # offline/test_embeddings.py is about pooling, models/test_lora.py about adapters.
    assert same == ["grammar", "structured_outputs", "n", "pooling", "adapter"]
    outputs = run(engine, Submit(id=1, prompt=[1, 2], params=params).engine_fields())[1]
    assert outputs[-1][2:5] in (("length", "", ""), ("stop", "", ""))
    assert outputs[0][5] is not None


def test_a_bad_word_of_two_tokens_is_not_generated(engine: Engine) -> None:
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    request = Submit(id=1, prompt=[1, 2], params=params)
    free = tokens(run(engine, request.engine_fields())[1])
    for _ in range(5):
        pair = free[3:5]
        request = msgspec.structs.replace(request, bad_words=[*request.bad_words, pair])
        without = tokens(run(engine, request.engine_fields())[1])
        assert not any(without[i : i + 2] in request.bad_words for i in range(59))
        free = without


def test_only_allowed_tokens_are_drawn(engine: Engine) -> None:
    params = SamplingParams(
        max_tokens=60, seed=1, temperature=2, allowed_token_ids=[9, 40, 33], ignore_eos=True
    )
    outputs = run(engine, Submit(id=1, prompt=[1, 2], params=params).engine_fields())[1]
    assert set(tokens(outputs)) == {9, 33, 40}


@pytest.mark.parametrize("missing", ["id", "prompt"])
def test_missing_fields_raise(engine: Engine, missing: str) -> None:
    request: dict[str, Any] = {"id": 1, "prompt": [1]}
    del request[missing]
    with pytest.raises(ValueError, match=f"has no {missing}"):
        engine.submit(request)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"prompt": []}, "invalid_request"),
        ({"prompt": [160]}, "invalid_request"),
        ({"temperature": float("nan")}, "invalid_request"),
        ({"temperature": 1e300}, "invalid_request"),  # infinite as a float of 32 bits
        ({"max_tokens": 2**62}, "too_long"),
    ],
)
def test_what_cannot_be_served_comes_back(
    engine: Engine, change: dict[str, Any], code: str
) -> None:
    ((_, ids, finish, error_code, error, *_),) = run(engine, {"id": 1, "prompt": [1]} | change)[1]
    assert (ids, finish, error_code) == ([], "error", code)
    assert error


def test_accepts_numpy_integers_tuples_and_integral_numbers(engine: Engine) -> None:
    request = {"id": np.int64(1), "prompt": tuple(np.arange(5)), "temperature": 0, "max_tokens": 1}
    assert len(tokens(run(engine, request)[1])) == 1


def test_abort_and_stop(engine: Engine) -> None:
    request = {"prompt": [1, 2, 3], "max_tokens": 250, "ignore_eos": True}
    for request_id in range(40):
        engine.submit(request | {"id": request_id})
    engine.abort(7)
    engine.abort(10**6)
    engine.stop()
    ends = {output[0]: output[2] for output in engine.take_outputs() if output[2]}
    assert set(ends) == set(range(40))
    assert ends[7] == "abort"
    engine.submit(request | {"id": 99})
    assert engine.take_outputs()[0][2:5] == ("error", "engine_failure", "the engine is stopped")
    assert engine.failure() == ""


def test_info(engine: Engine) -> None:
    info = engine.info
    assert info["family"] == "llama"
    assert info["weight_dtype"] == info["kv_dtype"] == "f32"
    assert info["kv_cache_tokens"] == info["num_pages"] * info["page_size"] == 512
    assert info["max_model_len"] == 256  # the model's positions
    assert info["kv_cache_bytes"] == 512 * 3 * 2 * 2 * 16 * 4
    assert info["num_threads"] == 2


def test_progress_is_reported_and_its_exception_passes(folder: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    Engine(str(folder), progress=lambda *call: calls.append(call))
    assert calls[-1][0] == "weights"
    assert calls[-1][1] == calls[-1][2] > 0

    def interrupt(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Engine(str(folder), progress=interrupt)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_dtype": "q4_0"}, "--kv-dtype must be auto, f32, f16, bf16, int8 or fp8, got q4_0"),
        ({"max_model_len": 257}, "--max-model-len must be between 0 and the model's 256 positions"),
        ({"kv_cache_tokens": 2**31 - 1, "page_size": 1024}, "not enough memory for a KV cache"),
        ({"num_threads": -1}, "--threads must be between 0 and 1024, got -1"),
    ],
)
def test_impossible_options(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Engine(str(folder), **options)
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_runing": 4}, TypeError, "unknown field 'max_runing' in the engine's options"),
        ({"page_size": "16"}, TypeError, "page_size must be an integer, got str"),
        ({"page_size": True}, TypeError, "page_size must be an integer, got bool"),
        ({"deterministic": 1}, TypeError, "deterministic must be a bool, got int"),
        ({"disable_overlap": 1}, TypeError, "disable_overlap must be a bool, got int"),
        ({"page_size": 2**31}, ValueError, "page_size must be between"),
        ({"memory_fraction": 0.0}, InputError, "--memory-fraction must be above 0"),
        ({"memory_fraction": float("nan")}, InputError, "--memory-fraction must be above 0"),
        ({"max_batch_tokens": 65537}, InputError, "--max-batch-tokens must be between 0 and 65536"),
        ({"load_format": "gguf"}, InputError, "--load-format must be auto or dummy, got gguf"),
    ],
)
def test_options_are_read_by_name(
    folder: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Engine(str(folder), **options)


def test_the_options_of_the_ipc_are_those_of_the_engine(folder: Path) -> None:
    asked = EngineOptions(
        model_path=str(folder), device="cpu", num_threads=1, kv_cache_tokens=512, max_running=7
    )
    assert Engine(**dataclasses.asdict(asked)).info["max_running"] == 7


@pytest.mark.parametrize("ending", ["pass", "raise SystemExit(0)", "del engine"])
def test_a_process_ends_cleanly_with_a_working_engine(folder: Path, ending: str) -> None:
    program = f"""
from minisgl._native import Engine
engine = Engine({str(folder)!r})
engine.start()
for i in range(300):
    engine.submit({{"id": i, "prompt": [1, 2, 3], "max_tokens": 200, "ignore_eos": True}})
{ending}
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], timeout=60, capture_output=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_an_answer_that_comes_again_is_drafted(folder: Path) -> None:
    engine = Engine(str(folder), device="cpu", num_threads=2, speculate="ngram")
    engine.start()
    request = {"prompt": token_ids(8), "max_tokens": 200, "seed": 3, "ignore_eos": True}
    answers = [run(engine, request | {"id": i, "speculate": i != 2})[i] for i in range(1, 4)]
    assert tokens(answers[0]) == tokens(answers[1]) == tokens(answers[2])
    drafts, held = answers[2][-1][10]
    stats = engine.stats()
    assert 0 <= held <= drafts <= stats["draft_tokens"]
    assert len(answers[1][-1]) == 9  # it has none
    assert sum(number for _, number in stats["accepted_at"]) == stats["accepted_tokens"]
    engine.stop()
