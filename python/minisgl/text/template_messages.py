"""Messages between the server and the template process: msgpack, each behind its length."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from minisgl.text.limited_child import with_length
from minisgl.tokenizer.template_source import TemplateSource

# Of the template process, in bytes of address space; an idle one has about 30 MB.
MEMORY_LIMIT = 512 * 2**20
MAX_PROMPT_CHARACTERS = 2**26  # that a template may make
MAX_FRAME_BYTES = 4 * MAX_PROMPT_CHARACTERS + 1024  # from the template process
MAX_SENTENCE = 4000  # characters


class LoadTemplate(msgspec.Struct, frozen=True, tag="load"):
    """Compile the template. Answered by Loaded, or by TemplateRefused with a sentence that has no
    subject.
    """

    source: TemplateSource


class Render(msgspec.Struct, frozen=True, kw_only=True, tag="render"):
    """Make a prompt. Answered by Rendered or TemplateRefused."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: dict[str, Any] | None = None


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The template is compiled."""


class Rendered(msgspec.Struct, frozen=True, tag="rendered"):
    """The prompt."""

    text: Annotated[str, Meta(max_length=MAX_PROMPT_CHARACTERS)]


class TemplateRefused(msgspec.Struct, frozen=True, tag="refused"):
    """Why there is no prompt, or no template. After "memory" the process is of no more use."""

    kind: Literal["template", "memory"]
    message: Annotated[str, Meta(max_length=MAX_SENTENCE)] = ""


ToTemplate = LoadTemplate | Render
FromTemplate = Loaded | Rendered | TemplateRefused

_encoder = msgspec.msgpack.Encoder()
_to_template: msgspec.msgpack.Decoder[ToTemplate] = msgspec.msgpack.Decoder(ToTemplate)
_from_template: msgspec.msgpack.Decoder[FromTemplate] = msgspec.msgpack.Decoder(FromTemplate)


def frame(message: ToTemplate | FromTemplate) -> bytes:
    """A message with its length. Raises what msgspec raises for values that msgpack hasn't."""
    return with_length(_encoder.encode(message))


def decode_to_template(data: bytes) -> ToTemplate:
    """Raises msgspec.DecodeError for anything that isn't a ToTemplate message."""
    return _to_template.decode(data)


def decode_from_template(data: bytes) -> FromTemplate:
    """Raises msgspec.DecodeError for anything that isn't a FromTemplate message."""
    return _from_template.decode(data)
