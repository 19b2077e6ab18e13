"""What the engine is asked for, made of what a client asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence

from minisgl.ipc.messages import EngineInfo, Submit
from minisgl.sampling_params import ParameterError, SamplingParams


def check_request(prompt_ids: list[int], params: SamplingParams, info: EngineInfo) -> None:
    """Raises ParameterError for a request that asks for what this model can't do."""
    if not prompt_ids:
        raise ParameterError("prompt", "the prompt is empty")
    if min(prompt_ids) < 0 or max(prompt_ids) >= info.vocab_size:
        bad = next(token for token in prompt_ids if not 0 <= token < info.vocab_size)
        raise ParameterError(
            "prompt", f"prompt token ids must be between 0 and {info.vocab_size - 1}, got {bad}"
        )
    if len(prompt_ids) + params.max_tokens > info.max_model_len:
        raise ParameterError(
            "max_tokens",
            f"the prompt has {len(prompt_ids)} tokens and max_tokens is {params.max_tokens}, "
            f"together more than the {info.max_model_len} tokens that a request may have",
        )
    params.check_tokens(info.vocab_size)


def make_request(
    request_id: int,
    prompt_ids: list[int],
    params: SamplingParams,
    info: EngineInfo,
    end_ids: Sequence[int] = (),
) -> Submit:
    """The engine's request. ParameterError when it asks for what this model can't do.

    `end_ids` are the ends that the tokenizer's files name; the engine may not know them all.
    """
    check_request(prompt_ids, params, info)
    more_ends = [] if params.ignore_eos else sorted(set(end_ids) - set(info.eos_token_ids))
    return Submit(
        id=request_id,
        prompt=prompt_ids,
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        ignore_eos=params.ignore_eos,
        stop_token_ids=[*params.stop_token_ids, *more_ends],
        logprobs=-1 if params.logprobs is None else params.logprobs,
        prompt_logprobs=-1 if params.prompt_logprobs is None else params.prompt_logprobs,
        temperature=params.temperature,
        top_k=max(params.top_k, 0),
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=random.getrandbits(64) if params.seed is None else params.seed,
        logit_bias=sorted(params.logit_bias.items()),
    )
