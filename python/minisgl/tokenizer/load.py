"""load_tokenizer: a model's folder or .gguf file to its Tokenizer."""

from __future__ import annotations

from pathlib import Path

from minisgl.tokenizer.folder import load_folder
from minisgl.tokenizer.gguf_tokenizer import load_gguf
from minisgl.tokenizer.tokenizer import Tokenizer


def load_tokenizer(path: str, *, chat_template: str | None = None) -> Tokenizer:
    """The tokenizer of a model folder or a .gguf file.

    `chat_template` is Jinja text that stands in for the model's own. Imports neither torch nor
    transformers, unless the folder has nothing but a SentencePiece model. Raises ModelError.
    """
    if Path(path).is_dir():
        return load_folder(Path(path), chat_template=chat_template)
    return load_gguf(Path(path), chat_template=chat_template)
