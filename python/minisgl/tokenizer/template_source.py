"""A chat template as text. What runs it is chat_template.py, in a process of its own: see
text/template_process.py.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from minisgl.model_files.files import ModelError
from minisgl.model_files.side_files import TEMPLATE_BYTES, read_text


class ChatTemplateError(ValueError):
    """The template is missing or refused the messages; the message says why."""


class TemplateSource(msgspec.Struct, frozen=True):
    """Jinja text by name, "default" or else the first in use, and "tool_use" for tools where it
    exists; and what templates call bos_token, eos_token and so on.

    Templates come from the model or the server's operator, never from a request.
    """

    texts: dict[str, str]
    special_tokens: dict[str, str] = {}


def read_chat_template(path: str) -> str:
    """Jinja text of a file that stands in for the model's own. ModelError when it can't be read or
    is empty.
    """
    what = f"the chat template {path!r}"
    try:
        source = read_text(Path(path), TEMPLATE_BYTES)
    except OSError as error:
        raise ModelError(f"{what} can't be read: {error.strerror}.") from error
    if not source:
        raise ModelError(f"{what} is empty.")
    return source
