"""What callers of LLM give: prompts in every form, and what is one for all of them or one per
prompt.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minisgl.engine.request import salt_of
from minisgl.ipc.messages import Standing
from minisgl.sampling_params import (
    MAX_PRIORITY,
    MIN_PRIORITY,
    ParameterError,
    PoolingParams,
    SamplingParams,
)

# Text, token ids, or a dict of either ({"prompt": ...} or {"prompt_token_ids": ...}) with, where it
# has one, its "cache_salt".
Prompt = str | Sequence[int] | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GivenPrompt:
    """A prompt as it was given. Either `text` or `token_ids` is there."""

    text: str | None = None
    token_ids: list[int] | None = None
    cache_salt: str | None = None


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """A prompt and what the engine is told with it."""

    text: str | None  # None where it was given as token ids
    ids: list[int]
    params: SamplingParams
    standing: Standing
    prefix_salt: bytes | None  # requests with different ones share no computed prefixes


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[GivenPrompt]:
    """One prompt or several, as several. ValueError when they are something else."""
    if isinstance(prompts, (str, Mapping)):
        return [_as_prompt(0, prompts)]
    items = list(prompts)
    if items and all(_is_integer(item) for item in items):
        return [_as_prompt(0, items)]
    return [_as_prompt(number, item) for number, item in enumerate(items)]


def as_params(
    params: SamplingParams | Sequence[SamplingParams], num_prompts: int
) -> list[SamplingParams]:
    """One per prompt. ValueError when they are something else."""
    if isinstance(params, SamplingParams):
        return [params] * num_prompts
    if not isinstance(params, Sequence) or not all(isinstance(p, SamplingParams) for p in params):
        raise ValueError(f"sampling_params must be SamplingParams or a list, got {params!r:.80}")
    _check_number("SamplingParams", len(params), num_prompts)
    return list(params)


def as_poolings(
    params: PoolingParams | Sequence[PoolingParams], num_prompts: int
) -> list[PoolingParams]:
    """One per prompt. ValueError when they are something else."""
    if isinstance(params, PoolingParams):
        return [params] * num_prompts
    if not isinstance(params, Sequence) or not all(isinstance(p, PoolingParams) for p in params):
        raise ValueError(f"pooling_params must be PoolingParams or a list, got {params!r:.80}")
    _check_number("PoolingParams", len(params), num_prompts)
    return list(params)


def as_standings(priority: int | Sequence[int], num_prompts: int) -> list[Standing]:
    """One per prompt. ValueError where a priority is something else or out of its range."""
    # Whatever has no elements is one for all, or nothing: a NumPy integer is no int.
    priorities = list(priority) if isinstance(priority, Iterable) else [priority] * num_prompts
    _check_number("priority", len(priorities), num_prompts)
    for one in priorities:
        if not _is_integer(one) or not MIN_PRIORITY <= one <= MAX_PRIORITY:
            raise ParameterError(
                "priority",
                f"priority must be an integer between {MIN_PRIORITY} and {MAX_PRIORITY}, "
                f"got {one!r:.80}",
            )
    return [Standing(priority=operator.index(one)) for one in priorities]


def as_salts(
    cache_salt: str | Sequence[str | None] | None, prompts: Sequence[GivenPrompt]
) -> list[bytes | None]:
    """The engine's, one per prompt: a prompt's own `cache_salt`, where it has none, comes before
    the one for all. ValueError where a salt is something else.
    """
    if isinstance(cache_salt, Iterable) and not isinstance(cache_salt, str):
        salts = list(cache_salt)
    else:
        salts = [cache_salt] * len(prompts)
    _check_number("cache_salt", len(salts), len(prompts))
    chosen = [
        salt if prompt.cache_salt is None else prompt.cache_salt
        for salt, prompt in zip(salts, prompts, strict=True)
    ]
    return [_salt(one) for one in chosen]


def _salt(cache_salt: object) -> bytes | None:
    if cache_salt is None:
        return None
    if not isinstance(cache_salt, str):
        raise ParameterError("cache_salt", f"cache_salt must be text, got {cache_salt!r:.80}")
    return salt_of(cache_salt, "")


def _as_prompt(number: int, item: object) -> GivenPrompt:
    given = item
    salt = None
    if isinstance(item, Mapping):
        unknown = [key for key in item if key not in ("prompt", "prompt_token_ids", "cache_salt")]
        if unknown or ("prompt" in item) == ("prompt_token_ids" in item):
            raise ValueError(
                f"prompt {number} must have either 'prompt' or 'prompt_token_ids', beside it only "
                f"'cache_salt', got {', '.join(map(repr, item)):.80}"
            )
        salt = item.get("cache_salt")
        given = item.get("prompt", item.get("prompt_token_ids"))
    if isinstance(given, str):
        return GivenPrompt(text=given, cache_salt=salt)
    if isinstance(given, Iterable):
        ids = list(given)
        if all(_is_integer(one) for one in ids):
            return GivenPrompt(token_ids=[operator.index(one) for one in ids], cache_salt=salt)
    raise ValueError(f"prompt {number} must be text or a list of token ids, got {given!r:.80}")


def _is_integer(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _check_number(name: str, number: int, num_prompts: int) -> None:
    if number != num_prompts:
        raise ParameterError(
            name,
            f"there must be one {name} for all prompts or one per prompt ({num_prompts}), "
            f"got {number}",
        )
