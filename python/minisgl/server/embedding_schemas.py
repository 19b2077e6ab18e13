"""Requests of /v1/embeddings and /v1/score: see schemas.py."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from minisgl.sampling_params import MAX_DIMENSIONS, MAX_PRIORITY, MAX_TOKEN_ID, MIN_PRIORITY
from minisgl.server.known_fields import EMBEDDING_FIELDS, SCORE_FIELDS, KnownField
from minisgl.server.schemas import MAX_MESSAGES, Message, Name, Prompt, TemplateArguments

Texts = str | list[str]


class PooledRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What both have in common."""

    model: Name | None = None
    pooling: Literal["last", "mean"] | None = None  # of the tokens' hidden states; by default last
    # vLLM's, as in GenerationRequest.
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    cache_salt: Name | None = None
    priority: Annotated[int, Meta(ge=MIN_PRIORITY, le=MAX_PRIORITY)] | None = None
    user: Any = None


class EmbeddingRequest(PooledRequest, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/embeddings: an input or, as vLLM has it, messages."""

    KNOWN: ClassVar[dict[str, KnownField]] = EMBEDDING_FIELDS

    input: Prompt | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    normalize: bool | None = None  # by default true
    # What the chat template makes of messages.
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateArguments | None = None


class ScoreRequest(PooledRequest, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/score."""

    KNOWN: ClassVar[dict[str, KnownField]] = SCORE_FIELDS

    text_1: Texts
    text_2: Texts
