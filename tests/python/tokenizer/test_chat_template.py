"""Chat templates, against transformers' own rendering."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from minisgl.tokenizer import ChatTemplateError
from minisgl.tokenizer.chat_template import ChatTemplate

NAMED = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

CHATML = """
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role not in ['ipython', 'tool'] and 'tool_calls' not in message %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls|length != 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson + "}<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if message.role == "tool" %}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/...') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {% generation %}{{- " " + message["content"] + eos_token}}{% endgeneration %}
    {%- endif %}
{%- endfor %}
"""

# Blocks on lines of their own: the white space around them depends on the environment's settings.
PLAIN_LINES = """{% for message in messages %}
  {% if message.role == 'user' %}
User: {{ message.content }}
  {% else %}
    {{ message.role | upper }}: {{ message.content }}
  {% endif %}
{% endfor %}
{{ documents }} {{ tools }}
"""

TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "qwen": QWEN,
    "mistral": MISTRAL,
    "lines": PLAIN_LINES,
}

USER = {"role": "user", "content": "Hi <b>& \"you\"</b> 中 'x'"}
ASSISTANT = {"role": "assistant", "content": "<think>no</think>\n\nHello "}
SYSTEM = {"role": "system", "content": " Be brief. "}
CONVERSATIONS = [
    [USER],
    [SYSTEM, USER],
    [USER, ASSISTANT, USER],
    [SYSTEM, USER, ASSISTANT, USER, ASSISTANT],
]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "größe <&>", "parameters": {"b": 1, "a": None}},
}


def theirs(
    source: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, **more: Any
) -> str:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    rendered, _ = utils.render_jinja_template(
        conversations=[messages], tools=tools, chat_template=source, **NAMED, **more
    )
    return rendered[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers_does(
    name: str, messages: list[dict[str, Any]], tools: Any, add_generation_prompt: bool
) -> None:
    source = TEMPLATES[name]
    more = {"enable_thinking": False}
    text = ChatTemplate({"default": source}, NAMED).render(
        messages,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        template_kwargs=more,
    )
    expected = theirs(source, messages, tools, add_generation_prompt=add_generation_prompt, **more)
    assert text == expected
    if name != "lines":
        assert "Hi <b>&" in text


def test_tool_calls() -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Köln", "days": [1, 2]}}}
    messages = [USER, {"role": "assistant", "tool_calls": [call]}]
    text = ChatTemplate({"default": LLAMA3}, NAMED).render(messages)
    assert text == theirs(LLAMA3, messages, None, add_generation_prompt=True)
    assert '{"city": "Köln", "days": [1, 2]}' in text


def test_the_template_may_refuse() -> None:
    template = ChatTemplate({"default": MISTRAL}, NAMED)
    with pytest.raises(ChatTemplateError, match=r"^Conversation roles must alternate"):
        template.render([USER, USER])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ messages[9].content.strip() }}",
        "{{ no_such_function() }}",
        "{{ messages.append(1) }}",  # the sandbox keeps data as it is
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ range(10**9) | list }}",
    ],
)
def test_what_goes_wrong_is_the_requests_fault(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="could not render"):
        ChatTemplate({"default": source}, NAMED).render([USER])


@pytest.mark.parametrize("source", ["{% for x in %}", "{{ " + "9" * 5000 + " }}"])
def test_a_template_that_does_not_compile(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="^has an error: "):
        ChatTemplate({"default": source}, NAMED)


def test_tool_use_template_is_taken_for_tools() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "tools: {{ tools|length }}"}, NAMED)
    assert template.render([USER]) == "plain"
    assert template.render([USER], tools=[]) == "plain"
    assert template.render([USER], tools=[TOOL]) == "tools: 1"


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "chat_template"])
def test_a_request_does_not_choose_what_the_server_sets(name: str) -> None:
    with pytest.raises(ChatTemplateError, match=f"must not set {name}"):
        ChatTemplate({"default": CHATML}, NAMED).render([USER], template_kwargs={name: "x"})


def test_text_parts_become_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    template = ChatTemplate({"default": "{{ messages[0].content }}"}, {})
    assert template.render([{"role": "user", "content": parts}]) == "one\ntwo"
    with pytest.raises(ChatTemplateError, match="got a part of type 'image_url'"):
        template.render([{"role": "user", "content": [{"type": "image_url"}]}])


def test_strftime_now() -> None:
    text = ChatTemplate({"default": "{{ strftime_now('%Y') }}"}, {}).render([])
    assert abs(int(text) - datetime.datetime.now().year) <= 1
