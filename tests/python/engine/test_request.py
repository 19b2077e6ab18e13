"""What the engine is asked for, from what a client asked for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from minisgl.engine.request import make_request
from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import EngineInfo, Output
from minisgl.sampling_params import ParameterError, SamplingParams

SALT = b"0123456789abcdef"
INFO = EngineInfo(vocab_size=100, max_model_len=32, eos_token_ids=[2])


def test_ends_that_only_the_tokenizer_knows_stop_a_request() -> None:
    request = make_request(1, [5], SamplingParams(stop_token_ids=[7]), INFO, end_ids=[2, 9])
    assert request.engine_fields()["stop_token_ids"] == [7, 9]


def test_ignore_eos_leaves_only_the_requests_own_stop_tokens() -> None:
    params = SamplingParams(stop_token_ids=[7], ignore_eos=True)
    request = make_request(1, [5], params, INFO, end_ids=[2, 9])
    assert request.engine_fields()["stop_token_ids"] == [7]


def test_a_request_has_a_seed() -> None:
    seeds = {make_request(1, [5], SamplingParams(), INFO).params.seed for _ in range(3)}
    assert None not in seeds
    assert len(seeds) == 3
    assert make_request(1, [5], SamplingParams(seed=7), INFO).params.seed == 7


def test_a_stream_is_resumed_with_the_same_parameters() -> None:
    params = SamplingParams(max_tokens=10, min_tokens=8, seed=7, prompt_logprobs=2, logprobs=1)
    request = make_request(
        1, [5, 6], params, INFO, end_ids=[9], bad_words=[[3, 4]], prefix_salt=SALT
    )
    stream = TokenStream(request, lambda request_id: None)
    assert stream.resumption() == stream.request
    stream.deliver(Output(1, [11, 12, 13, 14, 15]))
    resumed = stream.resumption()
    assert (resumed.prompt, resumed.num_resumed) == ([5, 6, 11, 12, 13, 14, 15], 5)
    assert (resumed.end_token_ids, resumed.bad_words) == ([9], [[3, 4]])
    assert resumed.prefix_salt == SALT
    assert resumed.params == msgspec.structs.replace(params, prompt_logprobs=None)


def test_what_was_cached_is_the_first_engines() -> None:
    stream = TokenStream(
        make_request(1, [5, 6, 7], SamplingParams(), INFO), lambda request_id: None
    )
    for output in (Output(1, [11], num_cached=2), Output(1, [12], num_cached=3), Output(1, [13])):
        stream.deliver(output)
    assert stream.num_cached == 2


@pytest.mark.parametrize(
    ("prompt", "parameter", "sentence"),
    [
        ([], "prompt", "the prompt is empty"),
        ([5, 100], "prompt", "got 100"),
        ([-1], "prompt", "got -1"),
        ([5] * 20, "max_tokens", "20 tokens"),
    ],
)
def test_what_the_model_cannot_serve_is_refused(
    prompt: list[int], parameter: str, sentence: str
) -> None:
    with pytest.raises(ParameterError, match=sentence) as error:
        make_request(1, prompt, SamplingParams(max_tokens=16), INFO)
    assert error.value.parameter == parameter


@pytest.mark.parametrize(("top_p", "drawn"), [(0, False), (1e-46, False), (1e-45, True)])
def test_a_top_p_of_0_in_32_bits_is_greedy(top_p: float, drawn: bool) -> None:
    params = make_request(1, [5], SamplingParams(top_p=top_p, temperature=1.5), INFO).params
    expected = (1.5, top_p) if drawn else (0.0, 1.0)
    assert (params.temperature, params.top_p) == expected


@pytest.mark.parametrize(
    ("fields", "bad_words", "names"),
    [
        ({}, [[5], [6]], "bad_words"),
        ({}, [[5]], None),
        ({}, [[5], [6, 6]], None),
        ({"min_tokens": 1}, [[5]], None),
        ({"min_tokens": 1, "stop_token_ids": [5, 6]}, [], "min_tokens"),
        ({"min_tokens": 1, "stop_token_ids": [6]}, [[5]], "min_tokens"),
        ({"stop_token_ids": [5, 6]}, [], None),
        ({"min_tokens": 1, "allowed_token_ids": [2, 9]}, [], "min_tokens"),
        ({"min_tokens": 1, "allowed_token_ids": [2, 9], "ignore_eos": True}, [], None),
    ],
)
def test_a_request_that_allows_nothing_is_refused(
    fields: dict[str, Any], bad_words: list[list[int]], names: str | None
) -> None:
    params = SamplingParams(**{"allowed_token_ids": [5, 6], **fields})
    if names is None:
        make_request(1, [5], params, INFO, end_ids=[9], bad_words=bad_words)
        return
    with pytest.raises(ParameterError, match=f"allowed_token_ids must have .*{names}") as error:
        make_request(1, [5], params, INFO, end_ids=[9], bad_words=bad_words)
    assert error.value.parameter == "allowed_token_ids"
