"""The template process: compiles the model's chat template and renders conversations with it, one
after the other. It has a limit of memory, and a parent that kills it when it takes too long; see
template_client.py.

It imports little, so that it starts fast and stays small, and talks through its standard input and
output. Its argument is its name in the list of processes.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import BinaryIO

from setproctitle import setproctitle

from minisgl.children import die_with_parent
from minisgl.text.template_messages import (
    LENGTH_BYTES,
    MAX_PROMPT_CHARACTERS,
    MAX_SENTENCE,
    MEMORY_LIMIT,
    FromTemplate,
    Loaded,
    LoadTemplate,
    Rendered,
    Started,
    TemplateRefused,
    ToTemplate,
    decode_to_template,
    frame,
)
from minisgl.tokenizer.chat_template import ChatTemplate
from minisgl.tokenizer.template_source import ChatTemplateError


def main() -> None:
    """Answers until the parent closes its end."""
    die_with_parent(signal.SIGKILL)
    setproctitle(sys.argv[1])
    inbox = os.fdopen(os.dup(0), "rb")
    outbox = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # nothing else that is written is an answer
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    outbox.write(frame(Started()))
    worker = _Worker()
    while data := _read_frame(inbox):
        _write(outbox, worker.answer(data))


def _read_frame(inbox: BinaryIO) -> bytes:
    """b"" at the end."""
    return inbox.read(int.from_bytes(inbox.read(LENGTH_BYTES), "little"))


def _write(outbox: BinaryIO, answer: FromTemplate) -> None:
    try:
        data = frame(answer)
    except MemoryError:
        data = frame(TemplateRefused("memory"))
    except UnicodeEncodeError as error:
        data = frame(TemplateRefused("template", f"the chat template's text is no text: {error}"))
    rest = memoryview(data)
    while rest:
        rest = rest[outbox.write(rest) or 0 :]


class _Worker:
    """The template, once it is loaded."""

    def __init__(self) -> None:
        self._template: ChatTemplate | None = None

    def answer(self, data: bytes) -> FromTemplate:
        """The reply to a message."""
        try:
            return self._obey(decode_to_template(data))
        except ChatTemplateError as error:
            return TemplateRefused("template", str(error)[:MAX_SENTENCE])
        except MemoryError:
            return TemplateRefused("memory")

    def _obey(self, message: ToTemplate) -> FromTemplate:
        if isinstance(message, LoadTemplate):
            self._template = ChatTemplate(message.source.texts, message.source.special_tokens)
            return Loaded()
        assert self._template is not None, "the template comes first"
        text = self._template.render(
            message.messages,
            tools=message.tools,
            add_generation_prompt=message.add_generation_prompt,
            continue_final_message=message.continue_final_message,
            template_kwargs=message.template_kwargs,
        )
        if len(text) > MAX_PROMPT_CHARACTERS:
            raise ChatTemplateError(
                f"the chat template made a prompt of {len(text)} characters "
                f"(limit {MAX_PROMPT_CHARACTERS})"
            )
        return Rendered(text)


if __name__ == "__main__":
    main()
