"""Requests as msgspec structs: every field typed and bounded, decoded strictly ("0.5" and true are
not numbers).

A field that no client of OpenAI's API knows is refused by name. Fields that change nothing about
the answer (user, store, metadata ...) are accepted; fields that this server can't honour are
refused in checks.py, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from minisgl.sampling_params import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORD_CHARS,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_LOGIT_BIAS_ENTRIES,
    MAX_LOGPROBS,
    MAX_N,
    MAX_PENALTY,
    MAX_REPETITION_PENALTY,
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MAX_TEMPERATURE,
    MAX_TOKEN_ID,
)

MAX_MESSAGES = 16384
MAX_CHOICES = 256  # prompts times n in one request

Name = Annotated[str, Meta(max_length=1024)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
Count = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
Positive = Annotated[int, Meta(ge=1, le=MAX_TOKEN_ID)]
StopString = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_STRING_CHARS)]
Penalty = Annotated[float, Meta(ge=-MAX_PENALTY, le=MAX_PENALTY)]
Bias = Annotated[float, Meta(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]
Object = Annotated[dict[str, Any], Meta(max_length=256)]
TemplateArguments = Annotated[dict[Name, Any], Meta(max_length=64)]


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the events of a stream carry."""

    include_usage: bool | None = None  # one more event with the whole request's usage
    continuous_usage_stats: bool | None = None  # usage so far in every event
    include_obfuscation: bool | None = None  # OpenAI's padding; has no effect here


class GenerationRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What chat and completions have in common.

    Sampling parameters have SamplingParams' names and ranges. OpenAI's API is narrower in places (a
    temperature up to 2, four stop strings); no client depends on being refused, so this one isn't.
    """

    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_N)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=MAX_TEMPERATURE)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None  # 0 and -1 are off
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=MAX_REPETITION_PENALTY)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=MAX_LOGIT_BIAS_ENTRIES)] | None = (
        None
    )
    # -2**63 to 2**64-1. A negative seed stands for its two's complement: every int64 and uint64 is
    # a seed.
    seed: int | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    bad_words: (
        Annotated[
            list[Annotated[str, Meta(min_length=1, max_length=MAX_BAD_WORD_CHARS)]],
            Meta(max_length=MAX_BAD_WORDS),
        ]
        | None
    ) = None
    allowed_token_ids: (
        Annotated[list[TokenId], Meta(min_length=1, max_length=MAX_ALLOWED_TOKEN_IDS)] | None
    ) = None
    include_stop_str_in_output: bool | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    # vLLM's: what more the answer says, and what is left of a prompt that is too long.
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    return_token_ids: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None
    truncation_side: Literal["left", "right"] | None = None  # where tokens are left out
    user: str | None = None  # no effect


class TextPart(msgspec.Struct):
    """A part of a message's content. Unknown fields are for checks.py: the kind of the part is what
    was wrong.
    """

    type: Name
    text: str | None = None


class FunctionCall(msgspec.Struct, forbid_unknown_fields=True):
    """The function that a call of the history names, with its arguments."""

    name: Name
    arguments: str  # JSON


class ToolCall(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A call that an earlier answer made, as it stands in the history."""

    function: FunctionCall
    id: Name | None = None
    type: Literal["function"] = "function"
    index: Count | None = None


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Meta(max_length=1024)] | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=128)] | None = None
    tool_call_id: Name | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    # Parts of an OpenAI answer that clients send back as they got it; null in all that this server
    # makes.
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    """The form of the answer; only "text" is supported."""

    type: Name


class ChatRequest(GenerationRequest, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    chat_template_kwargs: TemplateArguments | None = None
    add_generation_prompt: bool | None = None
    # Honoured only where that means to do nothing: see checks.py.
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Object], Meta(max_length=1024)] | None = None
    tool_choice: Name | Object | None = None
    functions: Annotated[list[Object], Meta(max_length=1024)] | None = None
    function_call: Name | Object | None = None
    modalities: Annotated[list[Name], Meta(max_length=8)] | None = None
    audio: Object | None = None
    web_search_options: Object | None = None
    reasoning_effort: Name | None = None
    verbosity: Name | None = None
    # No effect on the answer.
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    metadata: Object | None = None
    service_tier: Name | None = None
    prediction: Object | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: Name | None = None
    safety_identifier: Name | None = None


# A list is all strings, all ids or all lists of ids: prompts.py sees to that.
Prompt = str | list[str | TokenId | list[TokenId]]


class CompletionRequest(GenerationRequest, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/completions."""

    prompt: Prompt
    max_tokens: Count | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    add_special_tokens: bool | None = None
    best_of: Count | None = None
    suffix: str | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A prompt, or messages."""

    model: Name | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: TemplateArguments | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /detokenize."""

    tokens: list[TokenId]
    model: Name | None = None
    skip_special_tokens: bool | None = None
