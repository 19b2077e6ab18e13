"""Text to token ids and back: loading, chat templates, incremental detokenisation. Public names are
loaded when first used: the process that runs chat templates needs few of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minisgl.tokenizer.incremental import DetokenizerOptions, IncrementalDetokenizer
    from minisgl.tokenizer.load import load_tokenizer
    from minisgl.tokenizer.template_source import ChatTemplateError, TemplateSource
    from minisgl.tokenizer.tokenizer import Tokenizer

__all__ = [
    "ChatTemplateError",
    "DetokenizerOptions",
    "IncrementalDetokenizer",
    "TemplateSource",
    "Tokenizer",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    homes = {
        "ChatTemplateError": "template_source",
        "DetokenizerOptions": "incremental",
        "IncrementalDetokenizer": "incremental",
        "TemplateSource": "template_source",
        "Tokenizer": "tokenizer",
        "load_tokenizer": "load",
    }
    if name not in homes:
        raise AttributeError(f"module 'minisgl.tokenizer' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"minisgl.tokenizer.{homes[name]}"), name)
