"""The bodies of /v1/messages and /v1/messages/count_tokens as msgspec structs. Sampling has the
names of GenerationRequest, whose fields beyond Anthropic's may be sent, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from minisgl.sampling_params import MAX_STOP_STRINGS
from minisgl.server.known_fields import MESSAGES_FIELDS, KnownField
from minisgl.server.schemas import (
    MAX_MESSAGES,
    MAX_TOOLS,
    GenerationRequest,
    Name,
    Object,
    StopString,
    TemplateArguments,
)

MAX_BLOCKS = 4096  # of a message


class TextBlock(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A block of a system prompt, or of what a tool gave."""

    type: Name
    text: str | None = None
    # No effect.
    cache_control: Any = None
    citations: Any = None
    # No text has these.
    source: Any = None
    title: Any = None
    context: Any = None
    content: Any = None
    tool_name: Any = None


TextBlocks = Annotated[list[TextBlock], Meta(max_length=MAX_BLOCKS)]


class Block(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A block of a message: which fields count says the type."""

    type: Name
    text: str | None = None
    thinking: str | None = None
    # A call, and what it gave.
    id: Name | None = None
    name: Name | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Name | None = None
    content: str | TextBlocks | None = None
    is_error: bool | None = None
    # No effect.
    signature: Any = None
    cache_control: Any = None
    citations: Any = None
    caller: Any = None
    toolset_name: Any = None
    data: Any = None  # of a thought that another server has hidden: nobody can read it here
    # No text has these.
    source: Any = None
    title: Any = None
    context: Any = None


class Turn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Meta(max_length=MAX_BLOCKS)]


class Tool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A tool that the answer may call, and the client runs."""

    type: Name | None = None  # "custom"; others are refused by name
    name: Name | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    # No effect: all tools are described in the prompt, and all input is streamed as it comes.
    cache_control: Any = None
    defer_loading: Any = None
    eager_input_streaming: Any = None
    allowed_callers: Any = None
    input_examples: Any = None


class ToolChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which tools an answer calls."""

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whether, and for how long, the model thinks before it answers."""

    type: Name
    budget_tokens: Annotated[int, Meta(ge=1)] | None = None
    display: Literal["summarized", "omitted"] | None = None  # the first: thoughts, whole


class OutputFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The form of the answer's text."""

    type: Name
    schema: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the answer is to be like."""

    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    task_budget: Any = None  # is the client's to keep; no effect


class Metadata(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a request says of its sender."""

    user_id: str | None = None


class CountTokensRequest(GenerationRequest, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/messages/count_tokens: what a prompt is made of."""

    KNOWN: ClassVar[Mapping[str, KnownField]] = MESSAGES_FIELDS

    messages: Annotated[list[Turn], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | TextBlocks | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # an older place for output_config.format
    stop_sequences: Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    metadata: Metadata | None = None
    chat_template_kwargs: TemplateArguments | None = None
    context_management: Object | None = None  # nothing is cleared; the answer says so
    # No effect.
    cache_control: Any = None
    inference_geo: Any = None
    speed: Any = None
    diagnostics: Any = None
    user_profile_id: Any = None
    billing_policy: Any = None


class MessagesRequest(CountTokensRequest, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/messages."""

    max_tokens: Annotated[int, Meta(ge=0)]  # 0: the prompt is computed, for the cache
