"""The prompt of a completion request in its four forms, as lists of token ids."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, cast

from minisgl.server import errors
from minisgl.server.errors import MAX_TOKENIZED, bad_request
from minisgl.server.schemas import MAX_CHOICES, CompletionRequest, Prompt
from minisgl.tokenizer.offsets import offsets_in_text, text_of_ids, unfinished_bytes

if TYPE_CHECKING:
    from minisgl.ipc.messages import EngineInfo
    from minisgl.text.frontend import TextFrontend
    from minisgl.tokenizer import Tokenizer
    from minisgl.tokenizer.fill_in_middle import FillInMiddle


@dataclass(frozen=True)
class CompletionPrompt:
    """One prompt. `text` is None where it isn't what the client sent, or where that were ids."""

    ids: list[int]
    text: str | None
    begun: bytes = b""  # the last bytes of ids, where they begin a character that isn't complete


@dataclass(frozen=True)
class Echo:
    """A prompt as the answer shows it."""

    text: str
    offsets: list[int] | None  # characters before each token, where log probabilities need them


async def encode_prompts(
    text: TextFrontend, request: CompletionRequest, info: EngineInfo, max_prompt: int
) -> list[CompletionPrompt]:
    """The prompts of a request: one for a string or a list of ids, several for a list of either.

    `max_prompt` is how many tokens of a prompt are left when it is to be cut to what fits.
    ApiError 400. PromptTooLong when one surely has more tokens than longest_prompt().
    """
    given = separate_prompts(request.prompt)
    num_choices = len(given) * (request.n or 1)
    if num_choices > MAX_CHOICES:
        raise bad_request(
            f"The request has too many choices, prompts times n ({num_choices}; "
            f"limit {MAX_CHOICES}).",
            param="prompt",
        )
    prompts = []
    for prompt in given:
        if len(given) > 1:
            await asyncio.sleep(0)  # others have their turn between two of them
        if isinstance(prompt, str):
            ids = await _encode_text(text, request, prompt, info.max_model_len)
        else:
            ids = await _encode_ids(text, request, prompt, info.max_model_len)
        if not ids:
            raise bad_request("The prompt is empty.", param="prompt")
        if max(ids) >= info.vocab_size:
            raise bad_request(
                f"Prompt token ids must be between 0 and {info.vocab_size - 1}, got {max(ids)}.",
                param="prompt",
            )
        kept = truncate(ids, request, max_prompt)
        if isinstance(prompt, str) and kept is ids:
            prompts.append(CompletionPrompt(kept, prompt))
        else:
            begun = unfinished_bytes(
                text.tokenizer, kept, skip_special_tokens=request.skip_special_tokens is not False
            )
            prompts.append(CompletionPrompt(kept, None, begun))
    return prompts


async def _encode_text(
    text: TextFrontend, request: CompletionRequest, prompt: str, max_model_len: int
) -> list[int]:
    if request.suffix:
        prompt = _fill_in_middle(text.tokenizer).prompt(prompt, request.suffix)
    return await text.encode(
        prompt,
        add_special_tokens=request.add_special_tokens is not False,
        max_tokens=longest_prompt(request, max_model_len),
    )


async def _encode_ids(
    text: TextFrontend, request: CompletionRequest, prompt: list[int], max_model_len: int
) -> list[int]:
    if not request.suffix:
        return prompt
    # The suffix with its tokens; the prompt's place is behind the first of them.
    wanted = _fill_in_middle(text.tokenizer).prompt("", request.suffix)
    first, *rest = await text.encode(wanted, add_special_tokens=False, max_tokens=max_model_len)
    return [first, *prompt, *rest]


def _fill_in_middle(tokenizer: Tokenizer) -> FillInMiddle:
    if tokenizer.fill_in_middle is None:
        raise errors.unsupported(
            "suffix",
            "'suffix' is not supported by this model: its vocabulary has no fill-in-the-middle "
            "tokens.",
        )
    return tokenizer.fill_in_middle


class Cut(Protocol):
    """What is left of a prompt that is too long."""

    truncate_prompt_tokens: int | None
    truncation_side: Literal["left", "right"] | None


def longest_prompt(request: Cut, max_model_len: int) -> int:
    """How many tokens a prompt may have: more than the context where it is cut afterwards."""
    cut = request.truncate_prompt_tokens is not None
    return longest_text(max_model_len) if cut else max_model_len


def longest_text(max_model_len: int) -> int:
    """How many tokens a text may have that need not fit the context."""
    return max(max_model_len, MAX_TOKENIZED)


def truncate(ids: list[int], request: Cut, max_prompt: int) -> list[int]:
    """The part of a prompt that 'truncate_prompt_tokens' leaves; `ids` itself where that is all.

    ApiError 400 where nothing would be left.
    """
    wanted = request.truncate_prompt_tokens
    if wanted is None:
        return ids
    if wanted == 0:
        raise bad_request(
            "'truncate_prompt_tokens' must be at least 1, or -1 for as many tokens as fit, got 0.",
            param="truncate_prompt_tokens",
        )
    count = max_prompt if wanted < 0 else wanted
    if len(ids) <= count:
        return ids
    return ids[:count] if request.truncation_side == "right" else ids[-count:]


async def echoes(
    text: TextFrontend, request: CompletionRequest, prompts: list[CompletionPrompt]
) -> list[Echo]:
    """How the answer shows each prompt: as it was sent, or what its ids say. A character that they
    begin is shown with the rest of it, which the answer has.
    """
    return await text.off_loop(
        _echoes,
        text.tokenizer,
        request,
        prompts,
        size=sum(len(prompt.ids) for prompt in prompts),
    )


def _echoes(
    tokenizer: Tokenizer, request: CompletionRequest, prompts: list[CompletionPrompt]
) -> list[Echo]:
    skip = request.skip_special_tokens is not False
    add_special_tokens = request.add_special_tokens is not False
    made = []
    for prompt in prompts:
        offsets: list[int] | None = None
        if prompt.text is None:
            shown, offsets = text_of_ids(tokenizer, prompt.ids, skip_special_tokens=skip)
        else:
            shown = prompt.text
            if request.logprobs is not None:
                offsets = offsets_in_text(tokenizer, shown, add_special_tokens=add_special_tokens)
        made.append(Echo(shown, offsets))
    return made


def separate_prompts(prompt: Prompt, param: str = "prompt") -> list[str | list[int]]:
    """The prompts as they were sent, as the field `param`. ApiError 400 where there is none, or a
    mixture.
    """
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise bad_request(f"The {param} is empty.", param=param)
    kinds = set(map(type, prompt))
    if len(kinds) != 1:
        raise bad_request(
            f"The {param} must be a string, a list of strings, a list of token ids or a list of "
            "such lists, not a mixture.",
            param=param,
        )
    if kinds == {int}:
        return [cast("list[int]", prompt)]
    return cast("list[str | list[int]]", prompt)
