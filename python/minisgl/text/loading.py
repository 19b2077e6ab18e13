"""A model's tokenizer and chat template, loaded side by side."""

from __future__ import annotations

import asyncio

from minisgl.tasks import in_daemon_thread
from minisgl.text.template_client import TemplateClient
from minisgl.tokenizer import Tokenizer, load_tokenizer
from minisgl.tokenizer.template_source import TemplateSource, read_chat_template


def template_client(path: str | None, source: TemplateSource | None = None) -> TemplateClient:
    """For the template of a file, or for the model's own where that is None."""
    if path is None:
        return TemplateClient(source)
    return TemplateClient(source, origin=f"the chat template {path!r}")


def load_tokenizer_here(path: str, chat_template: str | None) -> Tokenizer:
    """A model's tokenizer, with the chat template of a file or its own. ModelError."""
    template = None if chat_template is None else read_chat_template(chat_template)
    return load_tokenizer(path, chat_template=template)


async def load_with_template(
    path: str, chat_template: str | None, templates: TemplateClient
) -> Tokenizer:
    """The tokenizer. Its chat template is loaded into the process, which is ended where there is
    none.
    """
    spawn = asyncio.create_task(templates.spawn())  # meanwhile
    try:
        # A signal ends the server also while this thread hangs.
        tokenizer = await in_daemon_thread(
            lambda: load_tokenizer_here(path, chat_template), "tokenizer"
        )
        if tokenizer.chat_template is not None:
            await spawn
            await templates.start(tokenizer.chat_template)
            return tokenizer
    finally:
        spawn.cancel()
        await asyncio.wait({spawn})
    await templates.close()
    return tokenizer
