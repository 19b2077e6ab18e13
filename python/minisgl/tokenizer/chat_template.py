"""ChatTemplate: a model's own Jinja template, rendered in a sandbox as Hugging Face renders it.

The sandbox limits neither time nor memory: this runs in the template process alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minisgl.model_files.side_files import TEMPLATE_BYTES
from minisgl.tokenizer.chat_messages import OpenMessage, with_arguments, without_nulls
from minisgl.tokenizer.template_source import ChatTemplateError

_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "chat_template"})


class ChatTemplate:
    """The texts and special tokens of a TemplateSource, compiled. ChatTemplateError when they can't
    be: a sentence without its subject, as the caller knows where the template comes from.
    """

    def __init__(self, texts: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        environment = _environment()
        for text in texts.values():
            if len(text) > TEMPLATE_BYTES:
                raise ChatTemplateError(
                    f"has {len(text)} characters; the limit for a template is {TEMPLATE_BYTES}"
                )
        try:
            self._templates = {name: environment.from_string(text) for name, text in texts.items()}
        except (RecursionError, SyntaxError, MemoryError) as error:
            # What Jinja compiles it to has a depth, too, that Python bounds.
            raise ChatTemplateError("is too large or nests too deeply") from error
        except Exception as error:  # Jinja lets those of Python's own through: of a long number
            raise ChatTemplateError(f"has an error: {str(error).rstrip('.')}") from error
        self._default = self._templates.get("default") or next(iter(self._templates.values()))
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt as text, which ends with the words of the last message if that is to be
        continued. ChatTemplateError says what the template had against the messages.
        """
        extra = dict(template_kwargs or {})
        for name in extra:
            if name in _RESERVED:
                raise ChatTemplateError(f"chat_template_kwargs must not set {name}")
        template = self._templates.get("tool_use", self._default) if tools else self._default
        variables = {
            **self._special_tokens,
            **extra,
            "tools": tools or None,
            "documents": extra.get("documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        messages = [with_arguments(_with_text_content(message)) for message in messages]
        try:
            if not continue_final_message:
                return _render(template, variables, messages)
            final = OpenMessage(messages)
            return final.cut(_render(template, variables, final.messages))
        except (ChatTemplateError, MemoryError):
            raise
        except Exception as error:
            # It runs on a client's data: whatever it trips over is the request's fault.
            raise ChatTemplateError(
                f"the chat template could not render these messages: {error}"
            ) from error


def _render(
    template: jinja2.Template, variables: dict[str, Any], messages: list[dict[str, Any]]
) -> str:
    """The prompt. A content that is None is None to the template if that asks for it, and the empty
    text to one that takes every content for a text.
    """
    if all(message.get("content") is not None for message in messages):
        return template.render({**variables, "messages": messages})
    filled = {**variables, "messages": without_nulls(messages)}
    try:
        prompt = template.render({**variables, "messages": messages})
    except Exception:
        return template.render(filled)
    if "None" not in prompt:
        return prompt
    without_none = template.render(filled)
    return prompt if prompt.count("None") == without_none.count("None") else without_none


def _with_text_content(message: dict[str, Any]) -> dict[str, Any]:
    """Content given as a list of text parts becomes one string, as text templates expect."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ChatTemplateError(f"message content must be text, got a part of type {kind!r}")
        texts.append(str(part.get("text", "")))
    return {**message, "content": "\n".join(texts)}


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks words for training: here a plain block."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML and sorts keys; models were trained on plain JSON.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise ChatTemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
