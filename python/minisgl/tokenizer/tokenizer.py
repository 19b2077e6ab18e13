"""Tokenizer: encode, decode, the bytes of a token."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from minisgl.tokenizer.fill_in_middle import find_fill_in_middle
from minisgl.tokenizer.stop_strings import StopStrings
from minisgl.tokenizer.template_source import ChatTemplateError, TemplateSource
from minisgl.tokenizer.token_bytes import WORD_MARK, TokenBytes, decoder_kind
from minisgl.tokenizer.token_floor import TokenFloor

if TYPE_CHECKING:
    import tokenizers

NUM_BYTE_TABLES_KEPT = 8
NUM_STOP_STRINGS_KEPT = 16  # requests' lists of them, each at most 64 kB of text
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))  # SentencePiece's


class Tokenizer:
    """Thread-safe once made. Made by `load_tokenizer`."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_token_ids: Iterable[int] = (),
        chat_template: TemplateSource | None = None,
        fill_in_middle: tuple[str, str, str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """`fill_in_middle`: the tokens that the model's file names for that, where it does.
        `config`: what its files say of the tokenizer, under tokenizer_config.json's names.
        """
        # Some tokenizer.json files still have what a training run cut and padded to.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        kind = decoder_kind(backend)
        added = backend.get_added_tokens_decoder()
        # The text of each token that is looked for in a text before all others.
        self.added_tokens = {i: token.content for i, token in added.items()}
        self.special_token_ids = frozenset(i for i, token in added.items() if token.special)
        self._all_bytes = TokenBytes(backend, kind)
        self.strips_first_space = kind.strips_first_space
        self._kind = kind
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.eos_token_ids: list[int] = sorted(set(eos_token_ids))
        self.chat_template = chat_template  # rendered elsewhere: text/template_client.py
        self.fill_in_middle = find_fill_in_middle(
            {token.content for token in added.values()}, fill_in_middle
        )
        # Few of them: which special tokens are shown is the server's choice.
        self._text_bytes = lru_cache(NUM_BYTE_TABLES_KEPT)(self._make_text_bytes)
        self.config = {"tokenizer_class": "PreTrainedTokenizerFast", **(config or {})}
        # The stop strings of a request are made ready once for all its choices.
        self.stop_strings = lru_cache(NUM_STOP_STRINGS_KEPT)(self._make_stop_strings)

    def digests(self) -> dict[str, str]:
        """What two tokenizers with the same meaning have in common, by what it is of. Takes some
        hundredths of a second.
        """
        parts: dict[str, object] = {
            "tokenizer": self._backend.to_str(),
            "chat template": self.chat_template and msgspec.to_builtins(self.chat_template),
            "set of end tokens": self.eos_token_ids,
            "way of filling in the middle": self.fill_in_middle,
        }
        return {
            name: hashlib.sha256(msgspec.json.encode(part, order="sorted")).hexdigest()
            for name, part in parts.items()
        }

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. A rendered chat already has its special tokens: encode it without.

        ValueError when the text holds a lone surrogate, which no UTF-8 text can.
        """
        if not isinstance(text, str):
            raise ValueError(f"text must be a string, got {type(text).__name__}")
        if not text.isascii():
            check_unicode(text)
        # The batch form skips the offsets, which nobody reads, and releases the GIL.
        encoding = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
        ids: list[int] = encoding.ids
        return ids

    @cached_property
    def floor(self) -> TokenFloor:
        """How many tokens a text has at least. Takes a moment when it is asked for first."""
        return TokenFloor(self._backend, self._kind)

    def encode_with_spans(
        self, text: str, *, add_special_tokens: bool = True
    ) -> tuple[list[int], list[tuple[int, int] | None]]:
        """The same ids, with the characters (begin, end) of `text` that each stands for; None for
        those that don't come of the text. Takes longer than encode().
        """
        encoding = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        spans = [
            None if begin == end and sequence is None else (begin, end)
            for (begin, end), sequence in zip(encoding.offsets, encoding.sequence_ids, strict=True)
        ]
        return encoding.ids, spans

    @cached_property
    def _added_token_texts(self) -> re.Pattern[str]:
        longest_first = sorted(filter(None, self.added_tokens.values()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def added_token_spans(self, text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Where added tokens stand in characters [begin, end) of a text, wholly or in part."""
        margin = max(map(len, self.added_tokens.values()), default=0)
        first, last = max(0, begin - margin), min(len(text), end + margin)
        for match in self._added_token_texts.finditer(text, first, last):
            if match.start() < end and match.end() > begin:
                yield match.span()

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`; bytes that are not UTF-8 become U+FFFD, unknown ids nothing."""
        table = self.byte_table(skip_special_tokens)
        data = b"".join([table[token_id] for token_id in token_ids])
        if self.strips_first_space:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes of one token, special or not: maybe part of a character; spaces kept."""
        return self._all_bytes[token_id]

    def grammar_tokens(self) -> list[bytes]:
        """The bytes of every token as grammars see them. Special tokens, and added ones written
        <like this>, are no text: they begin with a byte ff, which no text has. Takes a moment.
        """

        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        tokens = [b""] * (max(vocabulary.values()) + 1)
        for token, token_id in vocabulary.items():
            tokens[token_id] = self._kind.bytes_of(token)
        for token_id, token in self.added_tokens.items():
            if self.is_no_text(token_id):
                tokens[token_id] = b"\xff" + token.encode()
        return tokens

    def merges(self) -> list[tuple[int, int, int]]:
        """How a text becomes tokens: first (-1, -1, a token) for each that a character or a byte is
        to begin with, of several the one that counts first; then two neighbours and the token that
        they become, in the order in which that is tried. Empty where tokens are made otherwise, or
        have bytes in them that are none. Takes a moment.
        """
        model = json.loads(self._backend.to_str())["model"]
        if model["type"] != "BPE":
            return []
        ids = model["vocab"]
        single = [token for token in ids if len(token) == 1]
        units = single
        if not self._kind.byte_level:
            if not (self._kind.byte_fallback and model["byte_fallback"]):
                return []
            units = [*sorted(single, key=lambda token: token != WORD_MARK), *BYTE_TOKENS]
        units = [token for token in units if token in ids]
        found = [(-1, -1, ids[token]) for token in units]
        # What can't be begun with may still be in a text that is written, as a part of a token.
        single_bytes = b"".join(data for data in map(self._kind.bytes_of, units) if len(data) == 1)
        if any(self._kind.bytes_of(token).translate(None, single_bytes) for token in ids):
            return []
        pairs = (one.split(" ") if isinstance(one, str) else one for one in model["merges"])
        return found + [(ids[left], ids[right], ids[left + right]) for left, right in pairs]

    def is_no_text(self, token_id: int) -> bool:
        """Whether grammars name an added token by its id: a special one, or one that is written
        <like this>.
        """
        token = self.added_tokens[token_id]
        return token_id in self.special_token_ids or (token[:1] == "<" and token[-1:] == ">")

    def _make_stop_strings(self, stop: tuple[str, ...]) -> StopStrings:
        special = (self._all_bytes[token_id] for token_id in self.special_token_ids)
        return StopStrings(stop, [data.decode("utf-8", "replace") for data in special])

    def render_chat(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """The prompt of a conversation: encode it with add_special_tokens=False.

        The template runs in this process, without limits of time and memory, which is for models
        that are trusted: server and LLM render in another (text/template_client.py). `options` are
        ChatTemplate.render's. ChatTemplateError when the model has no template, or it has an error
        or refuses the messages.
        """
        from minisgl.tokenizer.chat_template import ChatTemplate

        if self.chat_template is None:
            raise ChatTemplateError("this model has no chat template")
        template = ChatTemplate(self.chat_template.texts, self.chat_template.special_tokens)
        return template.render(messages, **options)

    def byte_table(self, skip_special_tokens: bool, shown: Sequence[str] = ()) -> TokenBytes:
        """The bytes of each token id. Special tokens have none with `skip_special_tokens`, but for
        those with the texts in `shown`.
        """
        return self._text_bytes(tuple(shown)) if skip_special_tokens else self._all_bytes

    def _make_text_bytes(self, shown: tuple[str, ...]) -> TokenBytes:
        hidden = {i for i in self.special_token_ids if self.added_tokens[i] not in shown}
        return TokenBytes(self._backend, self._kind, hidden=frozenset(hidden))


def check_unicode(text: str) -> None:
    """ValueError when `text` can't be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text must be valid Unicode, got a lone surrogate {text[error.start]!a}"
            f" at character {error.start}"
        ) from None
