"""Chat templates rendered in the test's own process."""

from __future__ import annotations

from typing import Any

from minisgl.tokenizer import Tokenizer


def render(tokenizer: Tokenizer, messages: list[dict[str, Any]], **options: Any) -> str:
    return tokenizer.render_chat(messages, **options)
