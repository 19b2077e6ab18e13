"""SamplingParams: ranges, types, messages."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from minisgl.sampling_params import ParameterError, SamplingParams

BAD_VALUES: list[tuple[str, Any, str]] = [
    ("max_tokens", -1, "max_tokens must be between 0 and 2147483647, got -1"),
    ("max_tokens", True, "max_tokens must be an integer between 0 and 2147483647, got True"),
    ("max_tokens", 1.5, "max_tokens must be an integer between 0 and 2147483647, got 1.5"),
    ("min_tokens", 17, "min_tokens must be at most max_tokens (16), got 17"),
    ("temperature", -0.1, "temperature must be between 0 and 100, got -0.1"),
    ("temperature", math.nan, "temperature must be between 0 and 100, got nan"),
    ("temperature", math.inf, "temperature must be between 0 and 100, got inf"),
    ("temperature", "1", "temperature must be a number between 0 and 100, got '1'"),
    ("temperature", True, "temperature must be a number between 0 and 100, got True"),
    ("top_k", -2, "top_k must be between -1 and 2147483647, got -2"),
    ("top_p", -1e-46, "top_p must be between 0 and 1, got -1e-46"),
    ("top_p", 1.01, "top_p must be between 0 and 1, got 1.01"),
    ("min_p", 1.5, "min_p must be between 0 and 1, got 1.5"),
    ("repetition_penalty", 0, "repetition_penalty must be above 0 and at most 100, got 0"),
    (
        "repetition_penalty",
        1e-46,
        "repetition_penalty must be above 0 as a 32-bit number, where 1e-46 is 0",
    ),
    ("presence_penalty", 2.5, "presence_penalty must be between -2 and 2, got 2.5"),
    ("frequency_penalty", -3, "frequency_penalty must be between -2 and 2, got -3"),
    ("logit_bias", {1: 101}, "logit_bias of token 1 must be between -100 and 100, got 101"),
    ("logit_bias", {-1: 1}, "logit_bias's token ids must be between 0 and 2147483647, got -1"),
    ("logit_bias", {i: 1.0 for i in range(1025)}, "logit_bias must have at most 1024 entries"),
    ("logit_bias", [1], "logit_bias must map token ids to numbers, got [1]"),
    ("seed", 2**64, "seed must be between 0 and 18446744073709551615, got 18446744073709551616"),
    ("seed", 1 << 5000, "got a number of 5001 bits"),
    ("stop", "end", "stop must be a list, got 'end'"),
    ("stop", [""], "stop must hold strings of 1 to 1024 characters, got ''"),
    ("stop", ["x" * 1025], "stop must hold strings of 1 to 1024 characters, got 'xxx"),
    ("stop", ["x"] * 65, "stop must have at most 64 entries, got 65"),
    ("stop", ["\ud800"], "stop must hold valid Unicode text, got a lone surrogate in '\\ud800'"),
    ("stop_token_ids", [1] * 257, "stop_token_ids must have at most 256 entries, got 257"),
    ("stop_token_ids", [-5], "stop_token_ids' entries must be between 0 and 2147483647, got -5"),
    ("ignore_eos", 1, "ignore_eos must be true or false, got 1"),
    ("n", 129, "n must be between 1 and 128, got 129"),
    ("bad_words", "end", "bad_words must be a list, got 'end'"),
    ("bad_words", [""], "bad_words must hold strings of 1 to 256 characters, got ''"),
    ("bad_words", ["x"] * 65, "bad_words must have at most 64 entries, got 65"),
    ("allowed_token_ids", [], "allowed_token_ids must have at least 1 entry"),
    ("allowed_token_ids", [-5], "allowed_token_ids' entries must be between 0 and 2147483647"),
    ("allowed_token_ids", [1] * 4097, "allowed_token_ids must have at most 4096 entries"),
    ("logprobs", 21, "logprobs must be between 0 and 20, got 21"),
    ("prompt_logprobs", -1, "prompt_logprobs must be between 0 and 20, got -1"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD_VALUES)
def test_a_bad_value_is_named_with_its_field_and_range(
    field: str, value: Any, message: str
) -> None:
    with pytest.raises(ParameterError) as error:
        SamplingParams(**{field: value})
    assert error.value.parameter == field
    assert message in str(error.value)
    assert len(str(error.value)) < 300


def test_edges_are_allowed() -> None:
    params = SamplingParams(
        max_tokens=1, temperature=0, top_k=-1, top_p=1, min_p=1, presence_penalty=-2,
        frequency_penalty=2, logit_bias={0: -100, 5: 100}, seed=2**64 - 1, stop=["x" * 1024],
        n=128, logprobs=0, prompt_logprobs=20,
    )  # fmt: skip
    assert params.seed == 2**64 - 1


def test_defaults_are_not_shared() -> None:
    SamplingParams().stop.append("x")
    assert SamplingParams().stop == []


def test_decoding_checks_the_same_ranges() -> None:
    decoded = msgspec.json.decode(b'{"logit_bias": {"12": 3}, "top_p": 0.5}', type=SamplingParams)
    assert decoded.logit_bias == {12: 3.0}
    with pytest.raises(msgspec.ValidationError, match="n must be between 1 and 128, got 0"):
        msgspec.json.decode(b'{"n": 0}', type=SamplingParams)
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(b'{"temprature": 0}', type=SamplingParams)


def test_token_ids_are_checked_against_the_vocabulary() -> None:
    SamplingParams(logit_bias={99: 1.0}, stop_token_ids=[99]).check_tokens(100)
    with pytest.raises(ParameterError, match="must hold token ids between 0 and 99") as bias:
        SamplingParams(logit_bias={100: 1.0}).check_tokens(100)
    with pytest.raises(ParameterError, match="stop_token_ids must hold .* got 100") as stop:
        SamplingParams(stop_token_ids=[100]).check_tokens(100)
    with pytest.raises(ParameterError, match="allowed_token_ids must hold .* got 100"):
        SamplingParams(allowed_token_ids=[99, 100]).check_tokens(100)
    assert (bias.value.parameter, stop.value.parameter) == ("logit_bias", "stop_token_ids")
