"""What the engine is asked for, from what a client asked for."""

from __future__ import annotations

import pytest

from minisgl.engine.request import make_request
from minisgl.ipc.messages import EngineInfo
from minisgl.sampling_params import ParameterError, SamplingParams

INFO = EngineInfo(vocab_size=100, max_model_len=32, eos_token_ids=[2])


def test_ends_that_only_the_tokenizer_knows_stop_a_request() -> None:
    params = SamplingParams(stop_token_ids=[7])
    assert make_request(1, [5], params, INFO, end_ids=[2, 9]).stop_token_ids == [7, 9]


def test_ignore_eos_leaves_only_the_requests_own_stop_tokens() -> None:
    params = SamplingParams(stop_token_ids=[7], ignore_eos=True)
    assert make_request(1, [5], params, INFO, end_ids=[2, 9]).stop_token_ids == [7]


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
