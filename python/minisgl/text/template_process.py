"""The template process: compiles the model's chat template and renders conversations with it, one
after the other. It has a limit of memory, and a parent that kills it when it takes too long; see
template_client.py.

It imports little, so that it starts fast and stays small.
"""

from __future__ import annotations

from minisgl.text.limited_child import serve
from minisgl.text.template_messages import (
    MAX_PROMPT_CHARACTERS,
    MAX_SENTENCE,
    MEMORY_LIMIT,
    FromTemplate,
    Loaded,
    LoadTemplate,
    Rendered,
    TemplateRefused,
    ToTemplate,
    decode_to_template,
    frame,
)
from minisgl.tokenizer.chat_template import ChatTemplate
from minisgl.tokenizer.template_source import ChatTemplateError


def main() -> None:
    """Answers until the parent closes its end."""
    worker = _Worker()
    serve(MEMORY_LIMIT, lambda data: _frame(worker.answer(data)))


def _frame(answer: FromTemplate) -> bytes:
    try:
        return frame(answer)
    except MemoryError:
        return frame(TemplateRefused("memory"))
    except UnicodeEncodeError as error:
        return frame(TemplateRefused("template", f"the chat template's text is no text: {error}"))


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
