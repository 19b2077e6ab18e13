"""Text to token ids and back: loading, chat templates, incremental detokenisation. chat_template.py
is imported by name, by the process that runs it.
"""

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
