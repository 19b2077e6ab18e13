"""From a decoded request to what the engine is asked for: refusals of what can't be honoured,
SamplingParams, lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from minisgl.sampling_params import ParameterError, SamplingParams
from minisgl.server import errors
from minisgl.server.json_values import check_values
from minisgl.server.schemas import ChatRequest, CompletionRequest, GenerationRequest, Message

Request = TypeVar("Request")

DEFAULT_COMPLETION_TOKENS = 16


def decode(decoder: msgspec.json.Decoder[Request], body: bytes) -> Request:
    """ApiError 400 for anything that isn't JSON of the decoder's type, 413 for too much of it."""
    check_values(body)
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError) as error:
        raise errors.undecodable(error) from None


def check_common(request: GenerationRequest) -> None:
    """ApiError 400 for what neither chat nor completions can honour."""
    if request.stream_options is not None and not request.stream:
        raise errors.bad_request(
            "'stream_options' is only allowed when 'stream' is true.", param="stream_options"
        )
    if request.seed is not None and not -(2**63) <= request.seed < 2**64:
        raise errors.bad_request(
            "Invalid value for 'seed': it must be between -2**63 and 2**64 - 1.",
            param="seed",
            code="invalid_value",
        )


def check_chat(request: ChatRequest) -> None:
    """ApiError 400 for fields that would change the answer in a way this server can't."""
    check_common(request)
    if request.response_format is not None and request.response_format.type != "text":
        raise errors.unsupported(
            "response_format", "Only the response_format {'type': 'text'} is supported."
        )
    if request.tools and request.tool_choice != "none":
        raise errors.unsupported(
            "tools", "Tool calls are not supported; tools are accepted with tool_choice 'none'."
        )
    if request.tool_choice not in (None, "none", "auto"):
        raise errors.unsupported("tool_choice", "Only tool_choice 'none' is supported.")
    if request.functions and request.function_call != "none":
        raise errors.unsupported("functions", "Function calls are not supported.")
    if request.function_call not in (None, "none", "auto"):
        raise errors.unsupported("function_call", "Function calls are not supported.")
    if request.modalities is not None and request.modalities != ["text"]:
        raise errors.unsupported("modalities", "Only the modality 'text' is supported.")
    for name in ("audio", "web_search_options"):
        if getattr(request, name) is not None:
            raise errors.unsupported(name, f"'{name}' is not supported.")
    for name, neutral in (("reasoning_effort", "none"), ("verbosity", "medium")):
        if getattr(request, name) not in (None, neutral):
            raise errors.unsupported(name, f"'{name}' is not supported.")
    if request.top_logprobs is not None and not request.logprobs:
        raise errors.bad_request(
            "'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs"
        )
    both = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(both) > 1:
        raise errors.bad_request(
            "'max_tokens' and 'max_completion_tokens' are the same thing: set one of them.",
            param="max_tokens",
        )


def check_completion(request: CompletionRequest) -> None:
    """ApiError 400 for fields that would change the answer in a way this server can't."""
    check_common(request)
    if request.suffix:
        raise errors.unsupported("suffix", "'suffix' is not supported.")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise errors.unsupported(
            "best_of", f"'best_of' is only supported where it equals 'n' ({request.n or 1})."
        )
    if request.max_tokens == 0 and not request.echo:
        raise errors.bad_request(
            "'max_tokens' must be at least 1 unless 'echo' is true.", param="max_tokens"
        )


def plain_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages in the form that chat templates read: text contents, calls with decoded arguments,
    no absent fields.
    """
    return [_plain_message(message, index) for index, message in enumerate(messages)]


def _plain_message(message: Message, index: int) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        for position, part in enumerate(content):
            if part.type != "text" or part.text is None:
                raise errors.bad_request(
                    f"Content parts of type '{part.type[:64]}' are not supported: "
                    "the model reads text, as {'type': 'text', 'text': ...}.",
                    param=f"messages[{index}].content[{position}].type",
                )
        content = "\n".join(part.text or "" for part in content)
    if content is None and not (message.role == "assistant" and message.tool_calls):
        if message.role != "assistant":
            raise errors.bad_request(
                f"A message of role '{message.role}' must have a 'content'.",
                param=f"messages[{index}].content",
            )
        content = message.refusal or ""
    plain: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": "" if content is None else content,
    }
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            plain[name] = value
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "type": "function",
                "id": call.id or "",
                "function": {
                    "name": call.function.name,
                    "arguments": _arguments(call.function.arguments, index),
                },
            }
            for call in message.tool_calls
        ]
    return plain


_object_decoder = msgspec.json.Decoder(dict[str, Any])


def _arguments(text: str, index: int) -> dict[str, Any]:
    try:
        return _object_decoder.decode(text) if text else {}
    except (ValueError, RecursionError):
        raise errors.bad_request(
            "The arguments of a tool call must be a JSON object.",
            param=f"messages[{index}].tool_calls",
        ) from None


def stop_strings(request: GenerationRequest) -> list[str]:
    """The stop strings of a request, as a list."""
    return [request.stop] if isinstance(request.stop, str) else request.stop or []


def sampling_params(
    request: GenerationRequest,
    defaults: Mapping[str, float],
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> SamplingParams:
    """What one choice is sampled with (n is 1: the caller submits each choice). ApiError 400.

    A field that has the same name in the request and in SamplingParams is passed on as it is; where
    the request has none, or null, `defaults` counts: what the model publishes.
    """
    fields: dict[str, Any] = dict(defaults)
    fields |= {
        name: value
        for name in SamplingParams.__struct_fields__
        if (value := getattr(request, name, None)) is not None
    }
    fields |= {
        "max_tokens": max_tokens,
        "n": 1,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
        "seed": None if request.seed is None else request.seed % 2**64,
        "stop": stop_strings(request),
    }
    try:
        return SamplingParams(**fields)
    except ParameterError as error:  # its sentence is for the client, whose own value it shows
        raise errors.bad_request(str(error), param=error.parameter) from None


def fit(
    num_prompt: int, wanted: int | None, default: int | None, max_model_len: int, *, param: str
) -> int:
    """max_tokens for a prompt of `num_prompt` tokens: `wanted`, else `default`, else the rest of
    the context.

    Only a default is cut to what fits. ApiError 400 with both numbers when the prompt or what is
    wanted doesn't; `param` is where the prompt stands in the request.
    """
    room = max_model_len - num_prompt
    if room < (0 if wanted == 0 else 1):
        raise errors.too_long(num_prompt, max_model_len, param=param)
    if wanted is not None:
        if wanted > room:
            raise errors.too_long(num_prompt, max_model_len, wanted, param=param)
        return wanted
    return room if default is None else min(default, room)
