"""The prompt of a completion request in its four forms, as lists of token ids."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from minisgl.server.errors import bad_request
from minisgl.server.schemas import MAX_CHOICES, CompletionRequest

if TYPE_CHECKING:
    from minisgl.ipc.messages import EngineInfo
    from minisgl.text.frontend import TextFrontend


@dataclass(frozen=True)
class CompletionPrompt:
    """One prompt. `text` is None where the client sent ids."""

    ids: list[int]
    text: str | None


async def encode_prompts(
    text: TextFrontend, request: CompletionRequest, info: EngineInfo
) -> list[CompletionPrompt]:
    """The prompts of a request: one for a string or a list of ids, several for a list of either.
    ApiError 400. PromptTooLong when one surely has more tokens than the context.
    """
    given = separate_prompts(request)
    num_choices = len(given) * (request.n or 1)
    if num_choices > MAX_CHOICES:
        raise bad_request(
            f"The request has too many choices, prompts times n ({num_choices}; "
            f"limit {MAX_CHOICES}).",
            param="prompt",
        )
    add_special_tokens = request.add_special_tokens is not False
    prompts = []
    for prompt in given:
        if len(given) > 1:
            await asyncio.sleep(0)  # others have their turn between two of them
        if isinstance(prompt, str):
            ids = await text.encode(
                prompt, add_special_tokens=add_special_tokens, max_tokens=info.max_model_len
            )
            prompts.append(CompletionPrompt(ids, prompt))
        else:
            prompts.append(CompletionPrompt(prompt, None))
        ids = prompts[-1].ids
        if not ids:
            raise bad_request("The prompt is empty.", param="prompt")
        if max(ids) >= info.vocab_size:
            raise bad_request(
                f"Prompt token ids must be between 0 and {info.vocab_size - 1}, got {max(ids)}.",
                param="prompt",
            )
    return prompts


def separate_prompts(request: CompletionRequest) -> list[str | list[int]]:
    """The prompts as they were sent. ApiError 400 where there is none, or a mixture."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise bad_request("The prompt is empty.", param="prompt")
    kinds = set(map(type, prompt))
    if len(kinds) != 1:
        raise bad_request(
            "The prompt must be a string, a list of strings, a list of token ids or a list of such "
            "lists, not a mixture.",
            param="prompt",
        )
    if kinds == {int}:
        return [cast("list[int]", prompt)]
    return cast("list[str | list[int]]", prompt)
