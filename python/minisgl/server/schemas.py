"""Requests as msgspec structs: every field typed and bounded, and null wherever it may be left out.

They are decoded as their senders mean them: 16.0 and "16" are integers, 1 and "true" are flags.
Fields that are not here are decoding.py's business. Fields that change nothing about the answer
(user, store, metadata ...) are accepted; values that this server can't honour are refused in
checks.py, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from minisgl.sampling_params import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORD_CHARS,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_LOGIT_BIAS_ENTRIES,
    MAX_LOGPROBS,
    MAX_N,
    MAX_PENALTY,
    MAX_PRIORITY,
    MAX_REPETITION_PENALTY,
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MAX_TEMPERATURE,
    MAX_TOKEN_ID,
    MIN_PRIORITY,
    StructuredOutputsParams,
)

MAX_MESSAGES = 16384
MAX_ROLE_CHARS = 64
MAX_CHOICES = 256  # prompts times n in one request
MAX_TOOLS = 1024

Name = Annotated[str, Meta(max_length=1024)]
ToolName = Annotated[str, Meta(min_length=1, max_length=256)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
Count = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
# Tokens of an answer at most; -1 is as many as fit. No number is too large for that.
Length = Annotated[int, Meta(ge=-1)]
StopString = Annotated[str, Meta(max_length=MAX_STOP_STRING_CHARS)]  # an empty one stops nothing
Penalty = Annotated[float, Meta(ge=-MAX_PENALTY, le=MAX_PENALTY)]
Bias = Annotated[float, Meta(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]
Object = Annotated[dict[str, Any], Meta(max_length=256)]
TemplateArguments = Annotated[dict[Name, Any], Meta(max_length=64)]


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the events of a stream carry."""

    include_usage: bool | None = None  # one more event with the whole request's usage
    continuous_usage_stats: bool | None = None  # usage so far in every event
    include_obfuscation: bool | None = None  # OpenAI's padding; has no effect here


class StructuredOutputs(StructuredOutputsParams, kw_only=True, frozen=True):
    """The form of an answer, as vLLM has it."""

    structural_tag: Any = None  # is refused: see structured.py


class JsonSchemaForm(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An answer of a JSON schema."""

    schema: dict[str, Any] | None = None  # must be there: see structured.py
    name: Name | None = None
    strict: bool | None = None  # no effect: an answer is always held to all of its schema
    description: Any = None


class ResponseFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The form of an answer, as OpenAI's API has it."""

    type: Name | None = None  # "text", "json_object" or "json_schema"
    json_schema: JsonSchemaForm | None = None
    schema: dict[str, Any] | None = None  # llama.cpp's, with "json_object"


class GenerationRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What chat and completions have in common.

    Sampling parameters have SamplingParams' names and ranges. OpenAI's API is narrower in places (a
    temperature up to 2, four stop strings); no client depends on being refused, so this one isn't.
    """

    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_N)] | None = None
    best_of: Count | None = None  # see checks.py
    temperature: Annotated[float, Meta(ge=0.0, le=MAX_TEMPERATURE)] | None = None
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None  # 0 is greedy
    top_k: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None  # 0 and -1 are off
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=MAX_REPETITION_PENALTY)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=MAX_LOGIT_BIAS_ENTRIES)] | None = (
        None
    )
    # -2**63 to 2**64-1; -1 is none. Another negative seed stands for its two's complement: every
    # int64 and uint64 is a seed.
    seed: int | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    bad_words: (
        Annotated[
            list[Annotated[str, Meta(max_length=MAX_BAD_WORD_CHARS)]],  # empty ones ban nothing
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
    speculate: bool | None = None  # false: no drafts (--speculate)
    max_completion_tokens: Length | None = None  # comes before max_tokens
    # The form of the answer, one of them: see structured.py. vLLM's but for the first.
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    # vLLM's: what more the answer says, and what is left of a prompt that is too long.
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    return_token_ids: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None
    truncation_side: Literal["left", "right"] | None = None  # where tokens are left out
    # vLLM's: requests with different salts share no computed prefixes.
    cache_salt: Name | None = None
    # Whose turn it is (checks.standing).
    priority: Annotated[int, Meta(ge=MIN_PRIORITY, le=MAX_PRIORITY)] | None = None
    user: Any = None
    # No effect on the answer, whatever they are.
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None


class Part(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A part of a message's content: what stands in the field that the type names."""

    type: Name
    text: str | None = None
    refusal: str | None = None
    thinking: str | None = None
    # No text part has these.
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    prompt_cache_breakpoint: Any = None  # no effect


class FunctionCall(msgspec.Struct, forbid_unknown_fields=True):
    """The function that a call of the history names, with its arguments."""

    name: Name
    arguments: str | dict[str, Any] | None = None  # a text should be a JSON object
    parsed_arguments: Any = None  # as the openai package has read them; no effect


class CustomCall(msgspec.Struct, forbid_unknown_fields=True):
    """A call of a tool that takes text."""

    name: Name
    input: str | None = None


class ToolCall(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A call that an earlier answer made, as it stands in the history."""

    function: FunctionCall | None = None
    custom: CustomCall | None = None
    id: Name | None = None
    type: Name | None = None
    index: Count | None = None


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A message of the conversation."""

    role: Annotated[str, Meta(min_length=1, max_length=MAX_ROLE_CHARS)]  # the template's to judge
    content: str | Annotated[list[Part | str], Meta(max_length=1024)] | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=128)] | None = None
    tool_call_id: Name | None = None
    function_call: FunctionCall | None = None  # how calls were made before tool_calls
    reasoning_content: str | None = None
    reasoning: str | None = None  # another name for it
    refusal: str | None = None
    annotations: Any = None  # of an OpenAI answer; no effect
    parsed: Any = None  # as the openai package has read the content; no effect
    # Honoured only where that means to do nothing: see checks.py.
    audio: Any = None
    tools: Any = None


class FunctionTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A function that the answer may call."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None  # the JSON schema of its arguments; none: no arguments
    strict: bool | None = None  # the arguments keep to the schema


class Tool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A tool that is offered: a function. Others are refused by their type."""

    type: Name | None = None
    function: FunctionTool | None = None
    custom: Any = None  # what stands there if that is the type


Tools = Annotated[list[Tool], Meta(max_length=MAX_TOOLS)]


class NamedFunction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A function that a choice of tools names."""

    name: ToolName


class NamedTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One of the tools that are allowed."""

    type: Name | None = None
    function: NamedFunction | None = None


class AllowedTools(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Those of the tools that the answer may call, or has to."""

    mode: Literal["auto", "required"] = "auto"
    tools: Annotated[list[NamedTool], Meta(min_length=1, max_length=MAX_TOOLS)]


class ToolChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which tools an answer calls: what stands in the field that the type names."""

    type: Name | None = None
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None
    custom: Any = None


# Documents that the answer may draw on, for the chat template.
Documents = Annotated[list[Object], Meta(max_length=1024)]


class ChatRequest(GenerationRequest, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Length | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    # What the chat template makes of the messages.
    add_generation_prompt: bool | None = None  # by default, unless the last message is continued
    continue_final_message: bool | None = None  # the prompt ends with the last message's words
    add_special_tokens: bool | None = None  # beside those that the template writes
    chat_template_kwargs: TemplateArguments | None = None
    reasoning_effort: Name | None = None  # a variable of the template, as are the next two
    verbosity: Name | None = None
    documents: Documents | None = None
    tools: Tools | None = None
    # none, auto (the default), required, or which.
    tool_choice: Annotated[str, Meta(max_length=64)] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None  # false: an answer makes one call at most
    include_reasoning: bool | None = None  # false: thoughts are left out of the answer
    # Tokens of a thought before it is closed; -1 is any number.
    thinking_token_budget: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None
    # Honoured only where that means to do nothing: see tools.py.
    functions: Any = None
    function_call: Any = None
    # No effect on the answer, whatever they are.
    prediction: Any = None


# A list is all strings, all ids or all lists of ids: prompts.py sees to that.
Prompt = str | list[str | TokenId | list[TokenId]]


class CompletionRequest(GenerationRequest, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/completions."""

    prompt: Prompt
    max_tokens: Length | UnsetType | None = UNSET  # null is -1
    echo: bool | None = None
    # true is 1, false is none.
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | bool | None = None
    add_special_tokens: bool | None = None
    suffix: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.logprobs, bool):
            self.logprobs = 1 if self.logprobs else None


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A prompt, or messages with what belongs to them in a ChatRequest."""

    model: Name | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None  # by default, unless the last message is continued
    continue_final_message: bool | None = None  # the prompt ends with the last message's words
    add_special_tokens: bool | None = None  # by default to a prompt, and not to messages
    chat_template_kwargs: TemplateArguments | None = None
    reasoning_effort: Name | None = None  # a variable of the template, as are the next two
    verbosity: Name | None = None
    documents: Documents | None = None
    tools: Tools | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /detokenize."""

    tokens: list[TokenId]
    model: Name | None = None
    skip_special_tokens: bool | None = None
