"""The raw bytes of each token, worked out from the kind of decoder that the tokenizer has."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minisgl.model_files.files import ModelError
from minisgl.tokenizer.whole_texts import WholeTexts

if TYPE_CHECKING:
    import tokenizers

WORD_MARK = "\u2581"  # SentencePiece writes a space as this


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes are themselves, the rest move to U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in alphabet)
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_LEVEL = _byte_level_alphabet()


@dataclass(frozen=True)
class DecoderKind:
    """What of a `tokenizers` decoder matters for turning one token into bytes."""

    byte_level: bool = False  # else SentencePiece: WORD_MARK is a space
    byte_fallback: bool = False  # <0xE2> is the byte E2
    strips_first_space: bool = False  # the text's first space was put there by the encoder

    def bytes_of(self, token: str) -> bytes:
        """The bytes of a token as the vocabulary writes it."""
        if self.byte_level:
            try:
                return bytes([_BYTE_LEVEL[character] for character in token])
            except KeyError:  # an added token, written as plain text
                return token.encode()
        if self.byte_fallback and len(token) == 6 and token.startswith("<0x") and token[5] == ">":
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        return token.replace(WORD_MARK, " ").encode()


def decoder_kind(backend: tokenizers.Tokenizer) -> DecoderKind:
    """Reads the decoder's description. ModelError when no supported model uses its kind."""
    decoder = backend.decoder
    description: dict[str, Any] = {"type": "none"}
    if decoder is not None:
        description = json.loads(decoder.__getstate__())
    steps = description["decoders"] if description["type"] == "Sequence" else [description]
    names = [step["type"] for step in steps]
    if "ByteLevel" in names:
        return DecoderKind(byte_level=True)
    if any(not _is_sentencepiece_step(step) for step in steps):
        raise ModelError(f"the tokenizer's decoder {'+'.join(names)} is not supported.")
    return DecoderKind(
        byte_fallback="ByteFallback" in names,
        strips_first_space=any(
            step["type"] == "Strip"
            or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
            for step in steps
        ),
    )


def _is_sentencepiece_step(step: dict[str, Any]) -> bool:
    match step:
        case {"type": "ByteFallback" | "Fuse"}:
            return True
        case {"type": "Replace", "pattern": {"String": pattern}, "content": " "}:
            return bool(pattern == WORD_MARK)
        case {"type": "Strip", "content": " ", "start": 0 | 1, "stop": 0}:
            return True
        case {"type": "Metaspace", "replacement": replacement}:
            return bool(replacement == WORD_MARK)
    return False


class TokenBytes(dict[int, bytes]):
    """Token id -> raw bytes, filled as it is asked; ids that the vocabulary lacks are empty.

    `hidden` are ids shown as nothing, such as special tokens.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, kind: DecoderKind, hidden: frozenset[int] = frozenset()
    ) -> None:
        super().__init__((token_id, b"") for token_id in hidden)
        self._backend = backend
        self._kind = kind
        self.whole_texts = WholeTexts(self)

    def __missing__(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None
        if token is None:
            return b""  # not kept: there is no end of such ids
        return self.setdefault(token_id, self._kind.bytes_of(token))
