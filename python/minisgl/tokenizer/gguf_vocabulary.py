"""The vocabulary of a .gguf file: its tokens, and the ids that end, begin and fill a text."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import TypeVar

from minisgl.model_files.files import ModelError
from minisgl.model_files.gguf_metadata import Metadata
from minisgl.tokenizer.fill_in_middle import NAMES

logger = logging.getLogger(__name__)

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4

# Tokens that end a generation in every vocabulary that has them: files often name only one end, and
# some give these tokens the type of plain text. This is the set of llama.cpp.
_ENDS = frozenset(
    {
        "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<|end|>",
        "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<end_of_turn>", "<turn|>",
        "<|tool_response>", "<end_of_utterance>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
        "[e~[", "<\uff5cend\u2581of\u2581sentence\uff5c>",
    }
)  # fmt: skip
# This one is an end, too, unless it is a tag of HTML that the model writes, as Gemma does, whose
# vocabularies have it as a user-defined token: there llama.cpp ends in the middle of a page. In
# byte-level vocabularies (Qwen's) no text becomes it, and none shall: it keeps its type.
_SENTENCE_END = "</s>"
# What follows a piece of code that was filled in, by the key of its id.
_FILL_ENDS: Mapping[str, tuple[str, ...]] = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
# The keys of the tokens around and behind such a piece, new and old.
_FILL_KEYS = (("fim_pre", "prefix"), ("fim_suf", "suffix"), ("fim_mid", "middle"))
# Ids that llama.cpp takes where the file names none, by tokenizer model. Those of "gpt2" are
# Falcon's; in other vocabularies they are a comma, which ends nothing.
_DEFAULT_IDS: Mapping[str, Mapping[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "gpt2": {"bos": 11, "eos": 11},
}

T = TypeVar("T")


class Vocabulary:
    """Tokens, their types, and the ids that the file names, all checked. Raises ModelError."""

    def __init__(self, metadata: Metadata) -> None:
        tokens = list_field(metadata, "tokenizer.ggml.tokens", str)
        self.tokens: list[str] = [text or f"[EMPTY_{i}]" for i, text in enumerate(tokens)]
        self.ids = dict(zip(self.tokens, range(len(self.tokens)), strict=True))
        if not self.tokens:
            raise ModelError("the file has no vocabulary (tokenizer.ggml.tokens).")
        if len(self.ids) != len(self.tokens):
            raise ModelError("the vocabulary has a token twice.")
        self.types: list[int] = list_field(metadata, "tokenizer.ggml.token_type", int)
        if self.types and len(self.types) < len(self.tokens):
            raise ModelError(
                f"the file has {len(self.tokens)} tokens but {len(self.types)} token types."
            )
        self.types = self.types[: len(self.tokens)] or [NORMAL] * len(self.tokens)
        self._metadata = metadata
        self._model = field(metadata, "tokenizer.ggml.model", str, "")
        self._ends = _ENDS - {"<|end|>"} if self._has_ends_of_messages() else _ENDS
        names = ("bos", "eos", "unknown", "padding", "eot", "eom", *_FILL_ENDS)
        self._special_ids = {name: self._read_special_id(name) for name in names}
        self._retype_ends()
        self.fill_in_middle = self._fill_in_middle()

    def special_id(self, name: str) -> int | None:
        """The id under tokenizer.ggml.<name>_token_id, else what its kind of tokenizer has."""
        return self._special_ids[name]

    def _read_special_id(self, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        token_id = field(self._metadata, key, int, -1)
        if 0 <= token_id < len(self.tokens):
            return token_id
        default = self._default_id(name)
        if token_id not in (-1, 2**32 - 1):
            logger.warning(
                "the file's %s is %d, but its vocabulary has %d tokens: %s",
                key,
                token_id,
                len(self.tokens),
                "there is none" if default is None else f"{default} is taken",
            )
        return default

    def _default_id(self, name: str) -> int | None:
        token_id = _DEFAULT_IDS.get(self._model, {}).get(name)
        if name == "unknown":
            token_id = next(iter(self.of_type(UNKNOWN)), token_id)
        if token_id is None or token_id >= len(self.tokens):
            return None
        is_comma = self._model == "gpt2" and self.types[token_id] != CONTROL
        return None if is_comma else token_id

    def _has_ends_of_messages(self) -> bool:
        """Whether <|end|> stands between the messages of one answer, which has ends of its own
        (gpt-oss, Solar).
        """
        calls = "<|call|>" in self.ids or "<|calls|>" in self.ids
        return calls and ("<|return|>" in self.ids or "<|flush|>" in self.ids)

    def _retype_ends(self) -> None:
        """Tokens that end a generation by their names are no text, whatever the file says."""
        for text in self._ends:
            if (token_id := self.ids.get(text)) is not None:
                self.types[token_id] = CONTROL
        sentence_end = [_SENTENCE_END] if self._model == "llama" else []
        for text in ("<|end|>", *sentence_end, *itertools.chain(*_FILL_ENDS.values())):
            token_id = self.ids.get(text)
            if token_id is not None and self.types[token_id] == NORMAL:
                self.types[token_id] = CONTROL

    def _fill_in_middle(self) -> tuple[str, str, str] | None:
        """The tokens before, between and behind the texts around a gap that is to be filled in:
        those that the file names, else those that have names for it. They are no text, whatever the
        file says.
        """
        ids = [
            next((i for i in map(self._read_special_id, names) if i is not None), None)
            for names in _FILL_KEYS
        ]
        if None in ids:
            known = (names for names in NAMES if all(name in self.ids for name in names))
            ids = [self.ids[name] for name in next(known, ())]
        found = [token_id for token_id in ids if token_id is not None]
        if len(found) != len(_FILL_KEYS):
            return None
        for token_id in found:
            if self.types[token_id] == NORMAL:
                self.types[token_id] = CONTROL
        prefix, suffix, middle = (self.tokens[token_id] for token_id in found)
        return prefix, suffix, middle

    def named_tokens(self) -> dict[str, str]:
        """What chat templates call bos_token and so on."""
        names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token"}
        names["padding"] = "pad_token"
        ids = {name: self.special_id(key) for key, name in names.items()}
        return {
            name: self.tokens[token_id] for name, token_id in ids.items() if token_id is not None
        }

    def end_ids(self) -> set[int]:
        """All tokens that end a generation, as llama.cpp has them."""
        ends = {self.special_id(name) for name in ("eos", "eot", "eom")}
        ends |= {self.ids.get(text) for text in self._ends}
        token_id = self.ids.get(_SENTENCE_END)
        if token_id is not None and self.types[token_id] != USER_DEFINED:
            ends.add(token_id)
        for key, names in _FILL_ENDS.items():
            named = self.special_id(key)
            ends |= {self.ids.get(text) for text in names} if named is None else {named}
        return {token_id for token_id in ends if token_id is not None}

    def of_type(self, *types: int) -> list[int]:
        """The ids of the tokens of these types."""
        return [token_id for token_id, kind in enumerate(self.types) if kind in types]


def field(metadata: Metadata, key: str, kind: type[T], default: T) -> T:
    """The value under a key. ModelError for one of another type."""
    value = metadata.get(key, default)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ModelError(f"{key} must be of type {kind.__name__}, got {value!r:.80}.")
    return value


def list_field(metadata: Metadata, key: str, kind: type[T]) -> list[T]:
    """The list under a key, empty where there is none. ModelError for one of another type."""
    values = metadata.get(key, [])
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ModelError(f"{key} must be a list of {kind.__name__}.")
    return values
