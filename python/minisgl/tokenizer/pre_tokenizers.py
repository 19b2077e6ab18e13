"""How byte-level BPE vocabularies cut text into words, by the names that GGUF files use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minisgl.model_files.files import ModelError

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = "|".join([_CONTRACTIONS, _WORDS, r"\p{N}{1,3}", _SYMBOLS_AND_SPACES])
_QWEN2 = "|".join([_CONTRACTIONS, _WORDS, r"\p{N}", _SYMBOLS_AND_SPACES])
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenization:
    """What stands before and around the merges of one vocabulary family."""

    pattern: str | None = None  # words; None: GPT-2's own pattern
    single_digits: bool = False  # every digit is cut off before the pattern
    nfc: bool = False  # text is composed (Unicode NFC) first
    ignore_merges: bool = False  # a word that is a token is taken whole
    add_bos: bool = False  # where the file doesn't say

    def build(self, *, add_prefix_space: bool) -> PreTokenizer:
        """The pre-tokenizer of the `tokenizers` library."""
        from tokenizers import Regex, pre_tokenizers

        if self.pattern is None:
            byte_level = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=True)
            if not self.single_digits:
                return byte_level
            digits = pre_tokenizers.Digits(individual_digits=True)
            return pre_tokenizers.Sequence([digits, byte_level])
        split = pre_tokenizers.Split(Regex(self.pattern), behavior="isolated")
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False)
        return pre_tokenizers.Sequence([split, bytes_only])


_GPT2 = PreTokenization()
_SMOLLM = PreTokenization(single_digits=True)
_LLAMA_BPE = PreTokenization(_LLAMA3, ignore_merges=True, add_bos=True)
_QWEN = PreTokenization(_QWEN2, nfc=True)

PRE_TOKENIZATIONS: Mapping[str, PreTokenization] = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _SMOLLM,
    "starcoder": _SMOLLM,
    "refact": _SMOLLM,
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "qwen2": _QWEN,
    "deepseek-r1-qwen": PreTokenization(_QWEN2),
    "tekken": PreTokenization(_TEKKEN, ignore_merges=True, add_bos=True),
}


def pre_tokenization(name: str) -> PreTokenization:
    """The pre-tokenization that `tokenizer.ggml.pre` names. ModelError when it isn't known."""
    found = PRE_TOKENIZATIONS.get(name)
    if found is None:
        raise ModelError(
            f"the file's pre-tokenizer {name[:80]!r} is not supported "
            f"({', '.join(PRE_TOKENIZATIONS)} are): use the model's folder with its tokenizer.json."
        )
    return found
