"""Calls, null contents and open messages in chat templates."""

from __future__ import annotations

from typing import Any

import pytest

from minisgl.tokenizer import ChatTemplateError
from minisgl.tokenizer.chat_template import ChatTemplate
from tests.python.tokenizer.test_chat_template import (
    ASSISTANT,
    CHATML,
    NAMED,
    SYSTEM,
    TEMPLATES,
    USER,
    theirs,
)

CALL = {"type": "function", "id": "1", "function": {"name": "f", "arguments": '{"a":[1, 2]}'}}
CALLED = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]


def render(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    return ChatTemplate({"default": source}, NAMED).render(messages, **options)


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ("'' + arguments", '{"a":[1, 2]}'),  # DeepSeek's
        ("arguments + ''", '{"a":[1, 2]}'),
        ("arguments ~ ''", '{"a":[1, 2]}'),
        ("arguments", '{"a":[1, 2]}'),
        ("arguments | tojson", '{"a": [1, 2]}'),
        ("arguments is mapping", "True"),
        ("arguments.a[1]", "2"),
        ("arguments.items() | list", "[('a', [1, 2])]"),
    ],
)
def test_arguments_are_an_object_and_its_text(expression: str, shown: str) -> None:
    source = (
        "{% for m in messages[1:] %}{% set arguments = m.tool_calls[0].function.arguments %}"
        "{{ " + expression + " }}{% endfor %}"
    )
    assert render(source, CALLED) == shown


@pytest.mark.parametrize("arguments", ["no JSON", "[1]", "", '{"a":', "[" * 100_000])
def test_arguments_that_are_no_object_stay_text(arguments: str) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    source = "{{ messages[0].tool_calls[0].function.arguments }}"
    assert render(source, [{"role": "assistant", "tool_calls": [call]}]) == arguments


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ("'no text' if m.content is none else 'text'", "no text"),
        ("'<' + m.content + '>'", "<>"),
        ("'<' ~ m.content ~ '>'", "<>"),
        ("m.content", ""),
        ("m.content | trim", ""),
        ("m.content is none", "True"),
        ("raise_exception('null') if m.content is none else 'text'", "text"),
        ("'None' if m.content is none else 'None'", "None"),
    ],
)
def test_a_null_content_is_none_or_nothing(expression: str, shown: str) -> None:
    source = "{% for m in messages[1:] %}{{ " + expression + " }}{% endfor %}"
    assert render(source, CALLED) == shown


def test_a_template_that_refuses_both_says_so() -> None:
    with pytest.raises(ChatTemplateError, match=r"^no calls$"):
        render("{{ raise_exception('no calls') }}", CALLED)


@pytest.mark.parametrize("content", ["Paris is", "Paris ", " a\n\n", "x"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_last_message_is_left_open_as_transformers_does(name: str, content: str) -> None:
    source = TEMPLATES[name]
    for messages in (
        [USER, {"role": "assistant", "content": content}],
        [USER, ASSISTANT, {"role": "user", "content": content}],
    ):
        options = {"continue_final_message": True, "add_generation_prompt": False}
        prompt = render(source, messages, **options)
        assert prompt == theirs(source, messages, None, **options)
        assert prompt.rstrip().endswith(content.strip())


def test_an_empty_message_is_left_open_where_it_begins() -> None:
    messages = [USER, {"role": "assistant", "content": ""}]
    options = {"continue_final_message": True, "add_generation_prompt": False}
    assert render(CHATML, messages, **options).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("source", "messages", "why"),
    [
        (CHATML, [], "must have a content"),
        (CHATML, CALLED, "must have a content"),
        ("{{ messages[0].content }}", [SYSTEM, USER], "leaves out the last message"),
        ("{{ messages[1].content[:2] }}", [SYSTEM, USER], "leaves out the last message"),
    ],
)
def test_what_can_not_go_on(source: str, messages: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(ChatTemplateError, match=why):
        render(source, messages, continue_final_message=True)
