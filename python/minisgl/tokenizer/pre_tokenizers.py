"""How byte-level BPE vocabularies cut text into words, by the names that GGUF files use."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

logger = logging.getLogger(__name__)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_LLAMA3 = "|".join([_CONTRACTIONS, _WORDS, r"\p{N}{1,3}", _SYMBOLS_AND_SPACES])
_QWEN2 = "|".join([_CONTRACTIONS, _WORDS, r"\p{N}", _SYMBOLS_AND_SPACES])
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_SEED_CODER = "|".join(
    [_CONTRACTIONS, _WORDS, r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+", _SPACES]
)  # fmt: skip
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
    rf"|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_TEKKEN = _CASED % ("", "", r"\p{N}")
_GPT4O = _CASED % (_CONTRACTIONS + "?", _CONTRACTIONS + "?", r"\p{N}{1,3}")
_PUNCTUATION = r"[\p{P}$+<=>^~|]+"
_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_DEEPSEEK_V3 = (
    rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreTokenization:
    """What stands before and around the merges of one vocabulary family."""

    cuts: tuple[str, ...] = (_GPT2,)  # patterns, each of which cuts what the one before left
    nfc: bool = False  # text is composed (Unicode NFC) first
    ignore_merges: bool = False  # a word that is a token is taken whole
    add_bos: bool = False  # where the file doesn't say

    def build(self, *, add_prefix_space: bool) -> PreTokenizer:
        """The pre-tokenizer of the `tokenizers` library."""
        from tokenizers import Regex, pre_tokenizers

        steps: list[PreTokenizer] = [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.cuts
        ]
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False)
        return pre_tokenizers.Sequence([*steps, bytes_only])


_FAMILIES: tuple[tuple[PreTokenization, str], ...] = (
    (
        PreTokenization((_GPT2,)),
        "gpt-2 phi-2 jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe "
        "gigachat a.x-4.0 mellum modern-bert exaone4 mpt olmo jais trillion granite-docling",
    ),
    (
        PreTokenization((r"\p{N}", _GPT2)),
        "smollm starcoder refact codeshell exaone minerva-7b mellum2",
    ),
    (PreTokenization((r"\p{N}", _GPT2), nfc=True), "command-r"),
    (
        PreTokenization((_LLAMA3,), ignore_merges=True, add_bos=True),
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    ),
    (PreTokenization((_LLAMA3,)), "dbrx smaug-bpe glm4 chatglm-bpe"),
    (PreTokenization((_QWEN2,), nfc=True), "qwen2"),
    (
        PreTokenization((_QWEN2,)),
        "deepseek-r1-qwen megrez kormo f2llmv2 stablelm2 hunyuan solar-open grok-2",
    ),
    (PreTokenization((_QWEN35,), nfc=True), "qwen35"),
    (PreTokenization((_SEED_CODER,)), "seed-coder"),
    (PreTokenization((_TEKKEN,), ignore_merges=True, add_bos=True), "tekken"),
    (PreTokenization((_GPT4O,)), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (
        PreTokenization(
            (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK_V3)
        ),
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
    ),
    (
        PreTokenization(
            (
                r"[\r\n]",
                r"\s?\p{L}+",
                r"\s?\p{P}+",
                "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
                r"\p{N}",
            )
        ),
        "deepseek-coder",
    ),
    (PreTokenization((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9]{3}")), "falcon"),
)
_DEFAULT = PreTokenization((_PUNCTUATION, _GPT2, r"\p{N}+", "[0-9]{3}"))

PRE_TOKENIZATIONS: Mapping[str, PreTokenization] = {
    name: family for family, names in _FAMILIES for name in names.split()
}


def pre_tokenization(name: str, *, architecture: str = "", num_tokens: int = 0) -> PreTokenization:
    """The pre-tokenization that `tokenizer.ggml.pre` names.

    Where the file names none ("" or "default", as before May 2024), it is that of the architecture
    and the size of the vocabulary. Where these don't tell, and for a name that isn't known, it is
    llama.cpp's default. A warning says what was taken.
    """
    if (found := PRE_TOKENIZATIONS.get(name)) is not None:
        return found
    guess = _of_architecture(architecture, num_tokens) if name in ("", "default") else ""
    logger.warning(
        "%s: text is cut into words %s, which may give other tokens than the model was trained on; "
        "a newer conversion of the model, or its folder with tokenizer.json, is sure",
        f"the file's pre-tokenizer {name[:80]!r} is not known"
        if name not in ("", "default")
        else "the file names no pre-tokenizer (tokenizer.ggml.pre)",
        f"as {guess!r} does, by the architecture" if guess else "by llama.cpp's default",
    )
    return PRE_TOKENIZATIONS[guess] if guess else _DEFAULT


def _of_architecture(architecture: str, num_tokens: int) -> str:
    """The name of what all models of an architecture and a size of vocabulary use; "" where there
    is none.
    """
    if architecture in ("qwen2", "qwen2moe", "qwen3", "qwen3moe"):
        return "qwen2"
    return "llama-bpe" if architecture == "llama" and num_tokens == 128256 else ""
