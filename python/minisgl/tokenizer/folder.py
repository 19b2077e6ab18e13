"""The tokenizer of a model folder: tokenizer.json, configuration, chat templates, end tokens."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minisgl.model_files.files import ModelError
from minisgl.model_files.side_files import (
    TEMPLATE_BYTES,
    TOKENIZER_BYTES,
    read_file,
    read_json,
    read_text,
)
from minisgl.tokenizer.template_source import TemplateSource
from minisgl.tokenizer.text_ends import TextEnd, set_text_ends
from minisgl.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

_FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")  # of an added token
_ID = re.compile("[0-9]{1,10}")
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


def load_folder(path: Path, *, chat_template: str | None = None) -> Tokenizer:
    """Raises ModelError when the folder has no tokenizer or a file of it is damaged."""
    config = _tokenizer_config(path)
    named = _named_tokens(config)
    backend = _backend(path)
    _add_configured_tokens(backend, config, named.values())
    set_text_ends(
        backend, bos=_text_end(config, backend, "bos"), eos=_text_end(config, backend, "eos")
    )
    sources = {"default": chat_template} if chat_template else _chat_templates(path, config)
    return Tokenizer(
        backend,
        eos_token_ids=_eos_token_ids(path, backend, named.get("eos_token")),
        chat_template=TemplateSource(sources, named) if sources else None,
        config={
            **config,
            **named,
            "chat_template": sources.get("default") or next(iter(sources.values()), None),
        },
    )


def _read_json(path: Path) -> dict[str, Any]:
    """An object, empty where there is no such file."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}


def _tokenizer_config(path: Path) -> dict[str, Any]:
    """tokenizer_config.json. As transformers has it, the older special_tokens_map.json counts more,
    but not at all beside added_tokens_decoder, whose writers left the map as it was.
    """
    config = _read_json(path / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        return config
    return config | _read_json(path / "special_tokens_map.json")


def _text_end(config: dict[str, Any], backend: tokenizers.Tokenizer, name: str) -> TextEnd:
    """BOS or EOS around each text, as tokenizer_config.json says, else as tokenizer.json does."""
    add = config.get(f"add_{name}_token")
    token = _named_tokens(config).get(f"{name}_token")
    return TextEnd(
        None if token is None else backend.token_to_id(token),
        add if isinstance(add, bool) else None,
    )


def _backend(path: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend

    file = path / "tokenizer.json"
    with contextlib.suppress(FileNotFoundError):
        content = read_file(file, TOKENIZER_BYTES)
        try:
            return Backend.from_buffer(content)
        except Exception as error:  # the library's own exception type is plain Exception
            raise ModelError(f"{file} is not a tokenizer: {error}.") from error
    if not any(
        (path / name).is_file() for name in ("tokenizer.model", "vocab.json", "spiece.model")
    ):
        raise ModelError(f"{path} has no tokenizer (tokenizer.json or tokenizer.model).")
    return _converted(path)


def _converted(path: Path) -> tokenizers.Tokenizer:
    """What transformers makes of a folder with only a SentencePiece model or a plain vocabulary."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ModelError(
            f"{path} has no tokenizer.json, and converting its tokenizer needs "
            "`pip install transformers sentencepiece protobuf`."
        ) from None
    for pattern in ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"):
        for file in path.glob(pattern):
            read_file(file, TOKENIZER_BYTES)  # only for what it refuses: the library looks at none
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
        backend: tokenizers.Tokenizer = tokenizer.backend_tokenizer
    except Exception as error:  # whatever goes wrong here is the model's fault or the install's
        raise ModelError(
            f"the tokenizer in {path} can't be converted (this needs "
            f"`pip install sentencepiece protobuf`): {error}"
        ) from error
    return backend


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """bos_token and so on, which are strings or objects with the string in `content`."""
    named = {}
    for name in _NAMED_TOKENS:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            named[name] = value
    return named


def _add_configured_tokens(
    backend: tokenizers.Tokenizer, config: dict[str, Any], named: Collection[str]
) -> None:
    """Tokens that tokenizer_config.json adds to what tokenizer.json has, or describes otherwise.
    Its description counts, as in transformers, but makes no special token plain. Mostly there are
    none.
    """
    from tokenizers import AddedToken

    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    new_ids: dict[str, int] = {}
    changed: dict[str, AddedToken] = {}

    def describe(content: str, **flags: bool) -> None:
        old = changed.get(content, known.get(content))
        flags["special"] = flags.get("special", False) or (old is not None and old.special)
        token = AddedToken(content, **flags)
        if repr(token) != repr(old):
            changed[content] = token

    for token_id, token in _numbered(config.get("added_tokens_decoder")):
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise ModelError(f"tokenizer_config.json's added token {token_id} has no content.")
        if token["content"] not in known:
            new_ids[token["content"]] = token_id
        flags = {flag: token[flag] for flag in _FLAGS if isinstance(token.get(flag), bool)}
        describe(token["content"], **flags)
    for content in (*named, *_extra_special_tokens(config)):
        old = changed.get(content, known.get(content))
        if old is None and backend.token_to_id(content) is not None:
            describe(content, special=True, normalized=False)
        elif old is not None and content in named:
            describe(content, **{flag: getattr(old, flag) for flag in _FLAGS} | {"special": True})
    backend.add_tokens(list(changed.values()))
    for content, token_id in new_ids.items():
        if backend.token_to_id(content) != token_id:
            raise ModelError(
                f"tokenizer_config.json gives {content!r} the id {token_id}, but tokenizer.json "
                f"makes it {backend.token_to_id(content)}."
            )


def _numbered(tokens: object) -> list[tuple[int, Any]]:
    """The entries of an object whose keys are token ids, by these."""
    if not isinstance(tokens, dict):
        return []
    numbered = [(int(key), value) for key, value in tokens.items() if _ID.fullmatch(key)]
    return sorted(numbered, key=lambda entry: entry[0])


def _extra_special_tokens(config: dict[str, Any]) -> list[str]:
    """Special tokens without a name of their own, under the key's old name and its new one."""
    found: list[Any] = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        extra = config.get(name)
        extra = list(extra.values()) if isinstance(extra, dict) else extra
        found += extra if isinstance(extra, list) else []
    contents = (token.get("content") if isinstance(token, dict) else token for token in found)
    return [content for content in contents if isinstance(content, str)]


def _chat_templates(path: Path, config: dict[str, Any]) -> dict[str, str]:
    """Template text by name. As in transformers, chat_template.jinja takes the place of all that
    tokenizer_config.json has; chat_template.json, which is for processors of pictures, counts where
    there is nothing else.
    """
    sources: dict[str, str] = {}
    with contextlib.suppress(FileNotFoundError):
        sources["default"] = read_text(path / "chat_template.jinja", TEMPLATE_BYTES)
    if not sources:
        sources = _configured_templates(config)
    for file in sorted((path / "additional_chat_templates").glob("*.jinja")):
        sources[file.stem] = read_text(file, TEMPLATE_BYTES)
    if not sources:
        sources = _configured_templates(_read_json(path / "chat_template.json"))
    return sources


def _configured_templates(config: dict[str, Any]) -> dict[str, str]:
    """The key chat_template: a text, or a list of texts with names ("default", "tool_use")."""
    template = config.get("chat_template")
    if isinstance(template, str):
        return {"default": template}
    return {
        str(entry.get("name", "default")): entry["template"]
        for entry in (template if isinstance(template, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("template"), str)
    }


def _eos_token_ids(path: Path, backend: tokenizers.Tokenizer, eos_token: str | None) -> set[int]:
    """Everything that the model's files call an end of sequence."""
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = _read_json(path / name).get("eos_token_id")
        for token_id in value if isinstance(value, list) else [value]:
            if isinstance(token_id, int) and not isinstance(token_id, bool) and token_id >= 0:
                ids.add(token_id)
    if eos_token is not None and (token_id := backend.token_to_id(eos_token)) is not None:
        ids.add(token_id)
    return ids
