"""The bodies of Ollama's API as msgspec structs, and what else its clients may send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from minisgl.sampling_params import (
    MAX_DIMENSIONS,
    MAX_LOGPROBS,
    MAX_REPETITION_PENALTY,
    MAX_STOP_STRINGS,
    MAX_TEMPERATURE,
    MAX_TOKEN_ID,
)
from minisgl.server.known_fields import KnownField
from minisgl.server.schemas import (
    MAX_MESSAGES,
    MAX_ROLE_CHARS,
    Name,
    Penalty,
    StopString,
    Tools,
)

KeepAlive = float | Annotated[str, Meta(max_length=64)]  # a length of time

_TEXT_ONLY = "the model reads and writes text"
_NO_PICTURES = "no pictures are made"

# Fields of a request beside those of its schema.
OLLAMA_FIELDS: dict[str, KnownField] = {
    "template": KnownField("it is for the server's operator to set (--chat-template)"),
    "context": KnownField("use /api/chat, with the messages so far"),
    "images": KnownField(_TEXT_ONLY),
    "width": KnownField(_NO_PICTURES),
    "height": KnownField(_NO_PICTURES),
    "steps": KnownField(_NO_PICTURES),
    "_debug_render_only": KnownField("use /tokenize and /detokenize for the prompt"),
    "suffix": KnownField("a conversation has none; use /api/generate"),
    "tools": KnownField("use /api/chat"),
    "tool_choice": KnownField("use /v1/chat/completions"),
    # A prompt is never cut, and an answer ends with the context: true changes nothing where all
    # fits, and there is an error or a done_reason that says so where it doesn't.
    "truncate": KnownField(neutral=(True,)),
    "shift": KnownField(neutral=(True,)),
}

# Options that the struct below doesn't check.
OPTION_FIELDS: dict[str, KnownField] = {
    "mirostat": KnownField("use 'temperature', 'top_p' or 'min_p'"),
    "tfs_z": KnownField("use 'top_p' or 'min_p'", neutral=(1.0,)),
    "typical_p": KnownField("use 'top_p' or 'min_p'", neutral=(1.0,)),
    # 0 turns penalties off (see ollama_request.py), -1 and no value are all that was said, and 64
    # is what Ollama's clients send that send all defaults.
    "repeat_last_n": KnownField(
        "penalties count the whole prompt and answer; leave it out, or send -1 or 0",
        neutral=(-1, 64),
    ),
}


class Options(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How an answer is sampled and when it ends."""

    temperature: Annotated[float, Meta(ge=0.0, le=MAX_TEMPERATURE)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    seed: int | None = None
    num_predict: Annotated[int, Meta(ge=-2)] | None = None  # below 1: as many tokens as fit
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0.0, le=MAX_REPETITION_PENALTY)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    # The context is the model's, or --max-model-len, whatever a client asks for.
    num_ctx: Annotated[int, Meta(ge=0)] | None = None
    # See OPTION_FIELDS.
    mirostat: Any = None
    tfs_z: Any = None
    typical_p: Any = None
    repeat_last_n: Any = None
    # No effect on the answer: how another server loads a model, and what goes with the above.
    mirostat_tau: Any = None
    mirostat_eta: Any = None
    penalize_newline: Any = None
    num_keep: Any = None
    draft_num_predict: Any = None
    numa: Any = None
    num_batch: Any = None
    num_gpu: Any = None
    main_gpu: Any = None
    low_vram: Any = None
    f16_kv: Any = None
    logits_all: Any = None
    vocab_only: Any = None
    use_mmap: Any = None
    use_mlock: Any = None
    embedding_only: Any = None
    num_thread: Any = None


class OllamaRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What chat and generate have in common."""

    KNOWN: ClassVar[Mapping[str, KnownField]] = OLLAMA_FIELDS

    model: Name | None = None
    stream: bool | None = None  # by default it does
    format: str | dict[str, Any] | None = None  # "json", or a JSON schema
    options: Options | None = None
    keep_alive: KeepAlive | None = None  # nothing is ever unloaded
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None


class CalledFunction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The function of a call, with its arguments."""

    name: Name
    arguments: dict[str, Any] | str | None = None  # a text should be a JSON object
    index: Any = None  # the call's place among its message's: no effect
    description: Any = None


class OllamaCall(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A call that an earlier answer made."""

    function: CalledFunction
    id: Name | None = None
    type: Any = None  # "function", where it is there


class OllamaMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A message of the conversation."""

    role: Annotated[str, Meta(min_length=1, max_length=MAX_ROLE_CHARS)]  # the template's to judge
    content: str | None = None
    thinking: str | None = None
    tool_calls: Annotated[list[OllamaCall], Meta(max_length=128)] | None = None
    # Of a call's result: which function's it is, or which call's.
    tool_name: Name | None = None
    tool_call_id: Name | None = None
    images: Any = None  # are refused: see ollama_request.py


class OllamaChatRequest(OllamaRequest, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /api/chat."""

    messages: Annotated[list[OllamaMessage], Meta(max_length=MAX_MESSAGES)] | None = None
    tools: Tools | None = None


class OllamaGenerateRequest(OllamaRequest, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /api/generate."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None  # the prompt is what the model reads, without a template


class OllamaEmbedRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /api/embed."""

    KNOWN: ClassVar[Mapping[str, KnownField]] = {}

    model: Name | None = None
    input: str | list[str] | None = None
    truncate: bool | None = None  # by default true
    dimensions: Annotated[int, Meta(ge=0, le=MAX_DIMENSIONS)] | None = None  # 0: all of them
    keep_alive: KeepAlive | None = None
    options: Any = None  # no effect: they are about answers


class OllamaEmbeddingsRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /api/embeddings."""

    KNOWN: ClassVar[Mapping[str, KnownField]] = {}

    model: Name | None = None
    prompt: str | None = None
    keep_alive: KeepAlive | None = None
    options: Any = None


class OllamaShowRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /api/show."""

    KNOWN: ClassVar[Mapping[str, KnownField]] = {
        "system": KnownField(),
        "template": KnownField(),
        "options": KnownField(),
    }

    model: Name | None = None
    name: Name | None = None  # what `model` was called before
    verbose: bool | None = None  # no effect
