"""The bodies of /v1/responses as msgspec structs. What chat has, too, is GenerationRequest's; the
items of a conversation are read, stored and shown as the structs here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from minisgl.sampling_params import MAX_LOGPROBS
from minisgl.server.known_fields import RESPONSES_FIELDS, KnownField
from minisgl.server.schemas import (
    MAX_MESSAGES,
    GenerationRequest,
    Name,
    Object,
    TemplateArguments,
)

MAX_METADATA = 16  # keys
Effort = Annotated[str, Meta(max_length=64)]  # the template's to judge

LOGPROBS = "message.output_text.logprobs"
Includable = Literal[
    "message.output_text.logprobs",
    # An item's thought stands in its content, whatever a request includes.
    "reasoning.encrypted_content",
    # What only hosted tools and pictures have.
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class ContentPart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of an item: its text, in the field that the type names."""

    type: Name
    text: str | None = None
    refusal: str | None = None
    # Of an answer; no effect.
    annotations: Any = None
    logprobs: Any = None
    prompt_cache_breakpoint: Any = None
    # No text part has these.
    image_url: Any = None
    detail: Any = None
    input_audio: Any = None
    file_id: Any = None
    file_data: Any = None
    file_url: Any = None
    filename: Any = None


Content = str | Annotated[list[ContentPart], Meta(max_length=1024)]


class Item(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A message, a thought, a call or what a call gave: which fields count says the type."""

    type: Name | None = None  # a message's may be left out
    id: Name | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None
    status: Name | None = None
    phase: Any = None  # no effect
    # A call, and what it gave.
    call_id: Name | None = None
    name: Name | None = None
    arguments: str | None = None
    input: str | None = None  # of a call of a tool that takes text
    output: Content | None = None
    # A thought.
    summary: Annotated[list[ContentPart], Meta(max_length=1024)] | None = None
    encrypted_content: str | None = None  # another server's, which nobody can read here


class Tool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A function that the answer may call."""

    type: Name
    name: Name | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The function that is to be called, or those that may be."""

    type: Name
    name: Name | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[Object], Meta(max_length=1024)] | None = None


class TextFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The form of the answer's text."""

    type: Name
    name: Name | None = None
    description: str | None = None
    schema: Any = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the answer's text is to be like."""

    format: TextFormat | None = None
    verbosity: Name | None = None  # a variable of the chat template


class Reasoning(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How much is to be thought, and what of it is shown."""

    effort: Effort | None = None  # a variable of the chat template
    summary: Name | None = None
    generate_summary: Name | None = None  # an older name for it


class ResponsesRequest(GenerationRequest, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/responses."""

    KNOWN: ClassVar[Mapping[str, KnownField]] = RESPONSES_FIELDS

    input: str | Annotated[list[Item], Meta(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    previous_response_id: Name | None = None
    store: bool | None = None  # by default it is kept
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    include: Annotated[list[Includable], Meta(max_length=64)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    tools: Annotated[list[Tool], Meta(max_length=1024)] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: TemplateArguments | None = None
    metadata: (
        Annotated[
            dict[
                Annotated[str, Meta(max_length=64)],
                Annotated[str, Meta(max_length=512)],
            ],
            Meta(max_length=MAX_METADATA),
        ]
        | None
    ) = None
    max_tool_calls: Any = None  # of hosted tools; no effect


class InputTokensRequest(ResponsesRequest, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/responses/input_tokens: that of a request whose prompt is counted, which
    may have no items but those of earlier ones.
    """

    input: str | Annotated[list[Item], Meta(max_length=MAX_MESSAGES)] | None = None  # type: ignore[assignment]
