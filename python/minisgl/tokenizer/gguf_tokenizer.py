"""The tokenizer inside a .gguf file: its vocabulary and merges become a `tokenizers.Tokenizer`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from minisgl.model_files.files import ModelError
from minisgl.tokenizer.gguf_metadata import Metadata, read_gguf_metadata
from minisgl.tokenizer.pre_tokenizers import pre_tokenization
from minisgl.tokenizer.template_source import TemplateSource
from minisgl.tokenizer.token_bytes import WORD_MARK
from minisgl.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

# tokenizer.ggml.token_type
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
# Control tokens that end a turn in every vocabulary that has them; files often name only one end.
_TURN_ENDS = frozenset({"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>"})

T = TypeVar("T")


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
    vocabulary = _Vocabulary(metadata)
    kind = _get(metadata, "tokenizer.ggml.model", str, "")
    if kind == "gpt2":
        backend = _byte_level_bpe(metadata, vocabulary)
    elif kind == "llama":
        backend = _sentencepiece_bpe(metadata, vocabulary)
    else:
        raise ModelError(
            f"tokenizer model {kind[:80]!r} is not supported ('gpt2' and 'llama' are)."
        )
    _mark_added_tokens(backend, vocabulary)
    template = chat_template or _get(metadata, "tokenizer.chat_template", str, "")
    return Tokenizer(
        backend,
        eos_token_ids=vocabulary.end_ids(),
        chat_template=TemplateSource({"default": template}, vocabulary.named_tokens())
        if template
        else None,
    )


class _Vocabulary:
    """Tokens, their types, and the ids that the file names, all checked."""

    def __init__(self, metadata: Metadata) -> None:
        self.tokens: list[str] = _list(metadata, "tokenizer.ggml.tokens", str)
        self.ids = dict(zip(self.tokens, range(len(self.tokens)), strict=True))
        if not self.tokens:
            raise ModelError("the file has no vocabulary (tokenizer.ggml.tokens).")
        if len(self.ids) != len(self.tokens):
            raise ModelError("the vocabulary has a token twice.")
        self.types: list[int] = _list(metadata, "tokenizer.ggml.token_type", int)
        if self.types and len(self.types) != len(self.tokens):
            raise ModelError(
                f"the file has {len(self.tokens)} tokens but {len(self.types)} token types."
            )
        self._metadata = metadata

    def special_id(self, name: str) -> int | None:
        """The id under tokenizer.ggml.<name>_token_id."""
        key = f"tokenizer.ggml.{name}_token_id"
        token_id = _get(self._metadata, key, int, -1)
        if token_id == -1 or token_id == 2**32 - 1:
            return None
        if not 0 <= token_id < len(self.tokens):
            raise ModelError(
                f"{key} is {token_id}, but the vocabulary has {len(self.tokens)} tokens."
            )
        return token_id

    def named_tokens(self) -> dict[str, str]:
        """What chat templates call bos_token and so on."""
        names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token"}
        names["padding"] = "pad_token"
        ids = {name: self.special_id(key) for key, name in names.items()}
        return {
            name: self.tokens[token_id] for name, token_id in ids.items() if token_id is not None
        }

    def end_ids(self) -> set[int]:
        ends = {self.special_id(name) for name in ("eos", "eot", "eom")}
        for text in _TURN_ENDS:
            token_id = self.ids.get(text)
            if token_id is not None and self.types and self.types[token_id] == _CONTROL:
                ends.add(token_id)
        return {token_id for token_id in ends if token_id is not None}

    def of_type(self, *types: int) -> list[int]:
        return [token_id for token_id, kind in enumerate(self.types) if kind in types]


def _byte_level_bpe(metadata: Metadata, vocabulary: _Vocabulary) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    pre = pre_tokenization(_get(metadata, "tokenizer.ggml.pre", str, "default"))
    merges = []
    for line in _list(metadata, "tokenizer.ggml.merges", str):
        left, _, right = line.partition(" ")
        merges.append((left, right))
    backend = Backend(_bpe(models.BPE, vocabulary, merges, ignore_merges=pre.ignore_merges))
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    prefix_space = _get(metadata, "tokenizer.ggml.add_space_prefix", bool, False)
    backend.pre_tokenizer = pre.build(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    _add_template(backend, metadata, vocabulary, add_bos=pre.add_bos)
    return backend


def _sentencepiece_bpe(metadata: Metadata, vocabulary: _Vocabulary) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    scores = _list(metadata, "tokenizer.ggml.scores", float)
    if len(scores) != len(vocabulary.tokens):
        raise ModelError(f"the file has {len(vocabulary.tokens)} tokens but {len(scores)} scores.")
    unknown = vocabulary.special_id("unknown")
    if unknown is None:
        unknown = next(iter(vocabulary.of_type(_UNKNOWN)), None)
    model = _bpe(
        models.BPE,
        vocabulary,
        merges_from_scores(vocabulary.ids, scores),
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Backend(model)
    prefix_space = _get(metadata, "tokenizer.ggml.add_space_prefix", bool, True)
    spaces = normalizers.Replace(" ", WORD_MARK)
    steps = [decoders.Replace(WORD_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix_space:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(WORD_MARK), spaces])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = spaces
    backend.decoder = decoders.Sequence(steps)
    _add_template(backend, metadata, vocabulary, add_bos=True)
    return backend


def merges_from_scores(ids: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece merges the pair whose union has the best score: as merges, best first."""
    merges: list[tuple[float, int, int, str, str]] = []
    for token, token_id in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                merges.append((-scores[token_id], ids[left], ids[right], left, right))
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def _bpe(
    model: Any, vocabulary: _Vocabulary, merges: list[tuple[str, str]], **options: Any
) -> tokenizers.models.Model:
    try:
        return model(vocabulary.ids, merges, **options)  # type: ignore[no-any-return]
    except Exception as error:  # the library's own exception type is plain Exception
        raise ModelError(f"the vocabulary and its merges don't fit together: {error}.") from error


def _mark_added_tokens(backend: tokenizers.Tokenizer, vocabulary: _Vocabulary) -> None:
    """Control tokens are special, user-defined ones are found whole in text but are text."""
    from tokenizers import AddedToken

    special = vocabulary.of_type(_CONTROL, _UNKNOWN)
    plain = vocabulary.of_type(_USER_DEFINED)
    backend.add_special_tokens(
        [AddedToken(vocabulary.tokens[i], special=True, normalized=False) for i in special]
    )
    backend.add_tokens(
        [AddedToken(vocabulary.tokens[i], special=False, normalized=False) for i in plain]
    )


def _add_template(
    backend: tokenizers.Tokenizer, metadata: Metadata, vocabulary: _Vocabulary, *, add_bos: bool
) -> None:
    """Encoded text begins with BOS and ends with EOS where the file says so."""
    from tokenizers import processors

    wanted = {
        "bos": _get(metadata, "tokenizer.ggml.add_bos_token", bool, add_bos),
        "eos": _get(metadata, "tokenizer.ggml.add_eos_token", bool, False),
    }
    parts = {}
    for name, add in wanted.items():
        token_id = vocabulary.special_id(name)
        if add and token_id is not None:
            parts[name] = (vocabulary.tokens[token_id], token_id)
    if not parts:
        return
    single = [f"{parts['bos'][0]}:0"] if "bos" in parts else []
    single.append("$A:0")
    if "eos" in parts:
        single.append(f"{parts['eos'][0]}:0")
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=[*single, "$B:1"], special_tokens=list(parts.values())
    )


def _get(metadata: Metadata, key: str, kind: type[T], default: T) -> T:
    value = metadata.get(key, default)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ModelError(f"{key} must be of type {kind.__name__}, got {value!r:.80}.")
    return value


def _list(metadata: Metadata, key: str, kind: type[T]) -> list[T]:
    values = metadata.get(key, [])
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ModelError(f"{key} must be a list of {kind.__name__}.")
    return values
