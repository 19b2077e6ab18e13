"""From a decoded request to what the engine is asked for: refusals of what can't be honoured,
messages for the chat template, SamplingParams, lengths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from minisgl.ipc.messages import MAX_USER, Standing
from minisgl.sampling_params import ParameterError, SamplingParams
from minisgl.server import errors
from minisgl.server.schemas import (
    ChatRequest,
    CompletionRequest,
    FunctionCall,
    GenerationRequest,
    Message,
    TokenizeRequest,
    ToolCall,
)

DEFAULT_COMPLETION_TOKENS = 16

# A part's type -> its field with the text.
_TEXT_FIELDS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}


def check_common(request: GenerationRequest) -> None:
    """ApiError 400 for what neither chat nor completions can honour."""
    options = request.stream_options
    if (
        options is not None
        and not request.stream
        and (options.include_usage or options.continuous_usage_stats)
    ):
        raise errors.bad_request(
            "'stream_options' is only allowed when 'stream' is true.", param="stream_options"
        )
    if request.prompt_logprobs is not None and request.stream:
        raise errors.bad_request(
            "'prompt_logprobs' is only allowed when 'stream' is false.", param="prompt_logprobs"
        )
    if request.seed is not None and not -(2**63) <= request.seed < 2**64:
        raise errors.bad_request(
            "Invalid value for 'seed': it must be between -2**63 and 2**64 - 1, "
            f"got {str(request.seed)[:80]}.",
            param="seed",
        )
    if request.best_of not in (None, 1, request.n or 1):
        raise errors.unsupported(
            "best_of", f"'best_of' is only supported where it equals 'n' ({request.n or 1}) or 1."
        )


def check_chat(request: ChatRequest) -> None:
    """ApiError 400 for fields that would change the answer in a way this server can't."""
    check_common(request)
    if request.top_logprobs and not request.logprobs:
        raise errors.bad_request(
            "'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs"
        )


def check_length(request: ChatRequest) -> None:
    """ApiError 400 for an answer without tokens: OpenAI's API has none."""
    for name in ("max_completion_tokens", "max_tokens"):
        if getattr(request, name) == 0:
            raise errors.bad_request(
                f"'{name}' must be at least 1, or -1 for as many tokens as fit, got 0.", param=name
            )


def check_completion(request: CompletionRequest) -> None:
    """ApiError 400 for fields that would change the answer in a way this server can't."""
    check_common(request)
    for name in ("echo", "truncate_prompt_tokens"):
        if request.suffix and getattr(request, name):
            raise errors.unsupported("suffix", f"'suffix' is not supported together with '{name}'.")
    for name in ("max_completion_tokens", "max_tokens"):
        if getattr(request, name) == 0 and not request.echo:
            raise errors.bad_request(
                f"'{name}' must be at least 1 unless 'echo' is true.", param=name
            )


def plain_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as dicts: contents are text, or None where there is none; what is absent or has no
    meaning for a template is left out. ApiError 400.
    """
    return [_plain_message(message, index) for index, message in enumerate(messages)]


def _plain_message(message: Message, index: int) -> dict[str, Any]:
    for name in ("audio", "tools"):
        if getattr(message, name):
            path = f"messages[{index}].{name}"
            raise errors.unsupported(path, f"'{path}' is not supported: leave it out.")
    content = message.content
    if isinstance(content, list):
        content = "\n".join(
            part_text(part, _TEXT_FIELDS, "text", f"messages[{index}].content[{position}]")
            for position, part in enumerate(content)
        )
    calls = [_plain_call(call, index) for call in message.tool_calls or ()]
    if message.function_call is not None and not calls:
        calls = [_function_call("", message.function_call)]
    if content is None and message.refusal and not calls:
        content = message.refusal
    if content is None and message.role in ("system", "developer", "user"):
        raise errors.bad_request(
            f"A message of role '{message.role}' must have a 'content'.",
            param=f"messages[{index}].content",
        )
    plain: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": content,
    }
    reasoning = message.reasoning_content or message.reasoning
    for name, value in (
        ("name", message.name),
        ("tool_call_id", message.tool_call_id),
        ("reasoning_content", reasoning),
        ("reasoning", reasoning),
    ):
        if value is not None:
            plain[name] = value
    if calls:
        plain["tool_calls"] = calls
    return plain


class ContentPart(Protocol):
    """A part of a content, as each API has its own."""

    type: str


# Templates know three levels.
_TEMPLATE_EFFORTS = {"xhigh": "high", "max": "high"}


def template_effort(effort: str | None) -> str | None:
    """The level of thought that templates know, for one that a client asks for."""
    return None if effort is None else _TEMPLATE_EFFORTS.get(effort, effort)


def part_text(part: ContentPart | str, fields: Mapping[str, str], usual: str, path: str) -> str:
    """The text of a content part, in the field that its type has in `fields`. ApiError 400 for what
    is no text, with the `usual` type.
    """
    if isinstance(part, str):
        return part
    name = fields.get(part.type)
    if name is None:
        raise errors.unsupported(
            f"{path}.type",
            f"Content parts of type '{part.type[:64]}' are not supported: the model reads text, "
            f"as {{'type': '{usual}', 'text': ...}}.",
        )
    text: str | None = getattr(part, name)
    if text is None:
        raise errors.bad_request(
            f"A content part of type '{part.type}' must have a '{name}'.", param=f"{path}.{name}"
        )
    return text


def _plain_call(call: ToolCall, index: int) -> dict[str, Any]:
    if call.function is not None:
        return _function_call(call.id or "", call.function)
    if call.custom is not None:
        arguments = {"input": call.custom.input or ""}
        return _function_call(call.id or "", FunctionCall(call.custom.name, arguments))
    raise errors.bad_request(
        "A tool call must have a 'function'.", param=f"messages[{index}].tool_calls"
    )


def _function_call(call_id: str, function: FunctionCall) -> dict[str, Any]:
    return {
        "type": "function",
        "id": call_id,
        "function": {"name": function.name, "arguments": function.arguments or {}},
    }


def template_variables(request: ChatRequest | TokenizeRequest) -> dict[str, Any]:
    """What the chat template reads beside the messages."""
    variables = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        # Most templates know reasoning as something that is on or off.
        variables.setdefault("enable_thinking", request.reasoning_effort != "none")
    for name in ("reasoning_effort", "verbosity", "documents"):
        if (value := getattr(request, name)) is not None:
            variables[name] = value
    return variables


def stop_strings(request: GenerationRequest) -> list[str]:
    """The stop strings of a request, as a list without empty ones."""
    given = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return [text for text in given if text]


def sampling_params(
    request: GenerationRequest,
    defaults: Mapping[str, float],
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
    grammar: str | None,
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
        "grammar": grammar,
        "structured_outputs": None,  # `grammar` is what it became
        "seed": None if request.seed in (None, -1) else request.seed % 2**64,
        "stop": stop_strings(request),
        "bad_words": [word for word in request.bad_words or [] if word],
    }
    try:
        return SamplingParams(**fields)
    except ParameterError as error:  # its sentence is for the client, whose own value it shows
        raise errors.bad_request(str(error), param=error.parameter) from None


class Sent(Protocol):
    """What the place of a request among others is made of."""

    cache_salt: str | None
    priority: int | None
    user: Any


def standing(request: Sent, share: int, *, num_shares: int) -> Standing:
    """Whose turn a request of a share's waits for. Where there are several shares, a priority below
    0 is one of 0: nobody goes before strangers by saying so.
    """
    priority = request.priority or 0
    user = request.user
    return Standing(
        priority=priority if num_shares == 1 else max(0, priority),
        share=share,
        user=hash(user) & MAX_USER if user and isinstance(user, str) else 0,
    )


MAX_SESSION = 256  # characters of its name that are looked at


def session(request: Sent, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """What the client calls its conversation: the header X-Session-Id, else the field `user`. One
    that is empty is the same as none.
    """
    for name, value in headers:
        if name == b"x-session-id" and value:
            return value[:MAX_SESSION].decode("latin-1")
    user = request.user
    return user[:MAX_SESSION] if user and isinstance(user, str) else None


def prompt_scores(request: CompletionRequest) -> int | None:
    """How many alternatives the engine is to give for each token of the prompt; None where not even
    the tokens' own log probabilities are needed.
    """
    wanted = [request.prompt_logprobs, request.logprobs if request.echo else None]
    return max((count for count in wanted if count is not None), default=None)


def room_for_prompt(wanted: int | None, max_model_len: int) -> int:
    """How many tokens a prompt may have that is cut to what fits with `wanted` tokens of answer, or
    with one where the answer may have as many as fit.
    """
    reserved = 1 if wanted is None or not 0 <= wanted < max_model_len else wanted
    return max_model_len - reserved


def fit(num_prompt: int, wanted: int | None, max_model_len: int, *, param: str) -> int:
    """max_tokens for a prompt of `num_prompt` tokens: `wanted`, cut to the rest of the context.
    None and -1 stand for that rest.

    ApiError 400 with both numbers when the prompt doesn't fit; `param` is where it stands in the
    request.
    """
    room = max_model_len - num_prompt
    if room < (0 if wanted == 0 else 1):
        raise errors.too_long(num_prompt, max_model_len, param=param)
    return room if wanted is None or wanted < 0 else min(wanted, room)
