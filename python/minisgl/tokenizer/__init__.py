"""Text to token ids and back: loading, chat templates, incremental detokenisation."""

from minisgl.tokenizer.chat_template import ChatTemplate, ChatTemplateError
from minisgl.tokenizer.incremental import DetokenizerOptions, IncrementalDetokenizer
from minisgl.tokenizer.load import load_tokenizer
from minisgl.tokenizer.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "ChatTemplateError",
    "DetokenizerOptions",
    "IncrementalDetokenizer",
    "Tokenizer",
    "load_tokenizer",
]
