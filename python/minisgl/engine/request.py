"""What the engine is asked for, made of what a client asked for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import msgspec

from minisgl.ipc.messages import NO_STANDING, SALT_BYTES, EngineInfo, Standing, Submit
from minisgl.sampling_params import ParameterError, SamplingParams, is_float32_zero


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
    dimensions = None if params.pooling is None else params.pooling.dimensions
    if dimensions is not None and dimensions > info.hidden_size:
        raise ParameterError(
            "dimensions",
            f"dimensions must be between 1 and {info.hidden_size}, which is all that the model's "
            f"embeddings have, got {dimensions}",
        )


def make_request(
    request_id: int,
    prompt_ids: list[int],
    params: SamplingParams,
    info: EngineInfo,
    end_ids: Sequence[int] = (),
    bad_words: Sequence[list[int]] = (),
    prefix_salt: bytes | None = None,
    standing: Standing = NO_STANDING,
) -> Submit:
    """The engine's request. ParameterError when it asks for what this model can't do.

    `end_ids` are the ends that the tokenizer's files name; the engine may not know them all.
    `bad_words` is what params.bad_words is in tokens (TextFrontend.encode_words). `prefix_salt` is
    salt_of()'s.
    """
    check_request(prompt_ids, params, info)
    more_ends = [] if params.ignore_eos else sorted(set(end_ids) - set(info.eos_token_ids))
    if params.allowed_token_ids is not None:
        own_ends = () if params.ignore_eos else info.eos_token_ids
        _check_allowed(params, {*params.stop_token_ids, *more_ends, *own_ends}, bad_words)
    changes: dict[str, Any] = {}
    if is_float32_zero(params.top_p):  # the one most likely token is left
        changes |= {"temperature": 0.0, "top_p": 1.0}
    if params.seed is None:
        changes["seed"] = random.getrandbits(64)
    if changes:
        params = msgspec.structs.replace(params, **changes)
    return Submit(
        id=request_id,
        prompt=prompt_ids,
        params=params,
        end_token_ids=more_ends,
        bad_words=list(bad_words),
        prefix_salt=prefix_salt,
        standing=standing,
    )


def salt_of(cache_salt: str, api_key: str) -> bytes | None:
    """What keeps those apart in the prefix cache whose salts, or whose keys, are not the same; None
    where both are empty.
    """
    if not cache_salt and not api_key:
        return None
    key = hashlib.blake2b(api_key.encode()).digest()
    return hashlib.blake2b(cache_salt.encode(), key=key, digest_size=SALT_BYTES).digest()


def _check_allowed(
    params: SamplingParams, stop_tokens: set[int], bad_words: Sequence[list[int]]
) -> None:
    """ParameterError where no token could be drawn first: all that are allowed are bad words, or
    stop tokens that min_tokens bans.
    """
    banned = {word[0] for word in bad_words if len(word) == 1}
    left = set(params.allowed_token_ids or ()) - banned
    if not left:
        raise ParameterError(
            "allowed_token_ids",
            "allowed_token_ids must have a token that bad_words doesn't ban, got none",
        )
    if params.min_tokens and left <= stop_tokens:
        raise ParameterError(
            "allowed_token_ids",
            "allowed_token_ids must have a token that isn't banned by bad_words or, as a stop "
            f"token, by min_tokens ({params.min_tokens}), got none",
        )
