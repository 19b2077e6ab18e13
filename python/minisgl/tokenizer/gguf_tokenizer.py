"""The tokenizer inside a .gguf file: its vocabulary and merges become a `tokenizers.Tokenizer`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minisgl.model_files.files import ModelError
from minisgl.model_files.gguf_metadata import Metadata, read_gguf_metadata
from minisgl.tokenizer.gguf_vocabulary import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    field,
    list_field,
)
from minisgl.tokenizer.pre_tokenizers import pre_tokenization
from minisgl.tokenizer.template_source import TemplateSource
from minisgl.tokenizer.text_ends import TextEnd, set_text_ends
from minisgl.tokenizer.token_bytes import WORD_MARK
from minisgl.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers


def load_gguf(path: Path, *, chat_template: str | None = None) -> Tokenizer:
    """Raises ModelError when the file or its tokenizer can't be used."""
    metadata = read_gguf_metadata(path)
    try:
        return tokenizer_from_metadata(metadata, chat_template=chat_template)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def tokenizer_from_metadata(metadata: Metadata, *, chat_template: str | None = None) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describe. `chat_template` replaces the file's own.
    Raises ModelError.
    """
    vocabulary = Vocabulary(metadata)
    kind = field(metadata, "tokenizer.ggml.model", str, "")
    if kind == "gpt2":
        backend = _byte_level_bpe(metadata, vocabulary)
    elif kind == "llama":
        backend = _sentencepiece_bpe(metadata, vocabulary)
    else:
        raise ModelError(
            f"tokenizer model {kind[:80]!r} is not supported ('gpt2' and 'llama' are)."
        )
    _mark_added_tokens(backend, vocabulary)
    sources = {"default": chat_template} if chat_template else _chat_templates(metadata)
    return Tokenizer(
        backend,
        eos_token_ids=vocabulary.end_ids(),
        chat_template=TemplateSource(sources, vocabulary.named_tokens()) if sources else None,
        fill_in_middle=vocabulary.fill_in_middle,
        config={**vocabulary.named_tokens(), "chat_template": sources.get("default")},
    )


def _chat_templates(metadata: Metadata) -> dict[str, str]:
    """Template text by name: "default", and others such as "tool_use"."""
    key = "tokenizer.chat_template"
    names = [name.removeprefix(key + ".") for name in metadata if name.startswith(key + ".")]
    sources = {"default": field(metadata, key, str, "")}
    sources |= {name: field(metadata, f"{key}.{name}", str, "") for name in names}
    return {name: text for name, text in sources.items() if text}


def _byte_level_bpe(metadata: Metadata, vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    pre = pre_tokenization(
        field(metadata, "tokenizer.ggml.pre", str, ""),
        architecture=field(metadata, "general.architecture", str, ""),
        num_tokens=len(vocabulary.tokens),
    )
    merges = []
    for line in list_field(metadata, "tokenizer.ggml.merges", str):
        left, _, right = line.partition(" ")
        merges.append((left, right))
    backend = Backend(_bpe(models.BPE, vocabulary, merges, ignore_merges=pre.ignore_merges))
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    prefix_space = field(metadata, "tokenizer.ggml.add_space_prefix", bool, False)
    backend.pre_tokenizer = pre.build(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    _set_text_ends(backend, metadata, vocabulary, add_bos=pre.add_bos)
    return backend


def _sentencepiece_bpe(metadata: Metadata, vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    scores = list_field(metadata, "tokenizer.ggml.scores", float)
    if len(scores) < len(vocabulary.tokens):
        raise ModelError(f"the file has {len(vocabulary.tokens)} tokens but {len(scores)} scores.")
    unknown = vocabulary.special_id("unknown")
    model = _bpe(
        models.BPE,
        vocabulary,
        merges_from_scores(vocabulary.ids, scores),
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Backend(model)
    prefix_space = field(metadata, "tokenizer.ggml.add_space_prefix", bool, True)
    spaces = normalizers.Replace(" ", WORD_MARK)
    steps = [decoders.Replace(WORD_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix_space:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(WORD_MARK), spaces])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = spaces
    backend.decoder = decoders.Sequence(steps)
    _set_text_ends(backend, metadata, vocabulary, add_bos=True)
    return backend


def merges_from_scores(ids: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece merges the pair whose union has the best score, the leftmost of equals: as
    merges, best first, and among equals the longest left part, then the longest right part.
    """
    merges: list[tuple[float, int, int, str, str]] = []
    for token, token_id in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                merges.append((-scores[token_id], -len(left), -len(right), left, right))
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def _bpe(
    model: Any, vocabulary: Vocabulary, merges: list[tuple[str, str]], **options: Any
) -> tokenizers.models.Model:
    try:
        return model(vocabulary.ids, merges, **options)  # type: ignore[no-any-return]
    except Exception as error:  # the library's own exception type is plain Exception
        raise ModelError(f"the vocabulary and its merges don't fit together: {error}.") from error


def _mark_added_tokens(backend: tokenizers.Tokenizer, vocabulary: Vocabulary) -> None:
    """Control tokens are special, user-defined ones are found whole in text but are text."""
    from tokenizers import AddedToken

    special = vocabulary.of_type(CONTROL, UNKNOWN)
    plain = vocabulary.of_type(USER_DEFINED)
    backend.add_special_tokens(
        [AddedToken(vocabulary.tokens[i], special=True, normalized=False) for i in special]
    )
    backend.add_tokens(
        [AddedToken(vocabulary.tokens[i], special=False, normalized=False) for i in plain]
    )


def _set_text_ends(
    backend: tokenizers.Tokenizer, metadata: Metadata, vocabulary: Vocabulary, *, add_bos: bool
) -> None:
    """Encoded text begins with BOS and ends with EOS where the file says so."""
    set_text_ends(
        backend,
        bos=TextEnd(
            vocabulary.special_id("bos"),
            field(metadata, "tokenizer.ggml.add_bos_token", bool, add_bos),
        ),
        eos=TextEnd(
            vocabulary.special_id("eos"),
            field(metadata, "tokenizer.ggml.add_eos_token", bool, False),
        ),
    )
