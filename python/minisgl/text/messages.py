"""Messages between the server and a tokenizer process; see ipc/messages.py for the habits."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from minisgl.ipc.messages import Alive, Failed, RequestId, Sentence, Shutdown, TokenId, TokenIds
from minisgl.tokenizer import DetokenizerOptions

MAX_TEXT_CHARACTERS = 2**28
ALIVE_SECONDS = 1.0  # between two Alive messages of a process that has been configured


class TextOptions(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """A tokenizer process's first message: what to load."""

    path: str  # folder or .gguf file


class Encode(msgspec.Struct, frozen=True, tag="encode"):
    """Answered by Encoded or Refused."""

    id: RequestId
    text: Annotated[str, Meta(max_length=MAX_TEXT_CHARACTERS)]
    add_special_tokens: bool = True


class OpenText(msgspec.Struct, frozen=True, tag="open"):
    """A new incremental detokenizer. No answer."""

    id: RequestId
    options: DetokenizerOptions


class PushTokens(msgspec.Struct, frozen=True, tag="push"):
    """Tokens of an open detokenizer; `final` also takes its rest, behind which `stop_token` came.
    Answered by Text or Refused.
    """

    id: RequestId
    token_ids: TokenIds
    final: bool = False
    stop_token: TokenId | None = None


class CloseText(msgspec.Struct, frozen=True, tag="close"):
    """The detokenizer isn't needed any more. No answer."""

    id: RequestId


class TextReady(msgspec.Struct, frozen=True, tag="ready"):
    """The tokenizer is loaded."""


class Encoded(msgspec.Struct, frozen=True, tag="encoded"):
    """Token ids of a text."""

    id: RequestId
    token_ids: TokenIds


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Something is wrong with the text or the message; the sentence says what."""

    id: RequestId
    message: Sentence


class Text(msgspec.Struct, frozen=True, tag="text"):
    """Text that may be shown, and the detokenizer's state after it."""

    id: RequestId
    text: Annotated[str, Meta(max_length=MAX_TEXT_CHARACTERS)]
    match: Annotated[str, Meta(max_length=MAX_TEXT_CHARACTERS)] | None = None
    num_tokens: Annotated[int, Meta(ge=0)] = 0


ToText = TextOptions | Encode | OpenText | PushTokens | CloseText | Shutdown
FromText = Alive | TextReady | Encoded | Refused | Text | Failed

to_text_decoder: msgspec.msgpack.Decoder[ToText] = msgspec.msgpack.Decoder(ToText)
from_text_decoder: msgspec.msgpack.Decoder[FromText] = msgspec.msgpack.Decoder(FromText)
