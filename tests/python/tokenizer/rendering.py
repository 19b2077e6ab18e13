"""Chat templates rendered in the test's own process."""

from __future__ import annotations

from typing import Any

from minisgl.tokenizer import Tokenizer
from minisgl.tokenizer.chat_template import ChatTemplate


def render(tokenizer: Tokenizer, messages: list[dict[str, Any]], **options: Any) -> str:
    source = tokenizer.chat_template
    assert source is not None
    return ChatTemplate(source.texts, source.special_tokens).render(messages, **options)
