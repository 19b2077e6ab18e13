"""Tools for chat templates that know nothing of them: they are described in the system message, and
the calls and results of a conversation are written into its messages, in the form that Hermes has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

GENERIC_PARSER = "hermes"  # which reads the calls of this form

_RESULTS = ("tool", "function")  # roles
_BEFORE = "You can call functions. These are available, one JSON object per line:\n<tools>\n"
_AFTER = (
    "\n</tools>\n"
    "To call one, write a JSON object with its name and its arguments in this form, once per "
    'call:\n<tool_call>\n{"name": "NAME", "arguments": {"ARGUMENT": "VALUE"}}\n</tool_call>\n'
    "The results come between <tool_response> and </tool_response>."
)


def describe_tools(
    messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Messages with nothing in them but text: the assistant's calls stand behind what it said,
    results are the user's, and a system message describes the tools, if there are any.
    """
    written: list[dict[str, Any]] = []
    after_result = False
    for message in messages:
        is_result = message["role"] in _RESULTS
        if is_result and after_result:  # templates let user and assistant take turns
            written[-1]["content"] += "\n" + _written(message)["content"]
        else:
            written.append(_written(message))
        after_result = is_result
    if not tools:
        return written
    about = _BEFORE + "\n".join(map(_json, tools)) + _AFTER
    if written and written[0]["role"] == "system":
        first = written.pop(0)
        about = f"{first['content'] or ''}\n\n{about}".lstrip("\n")
    return [{"role": "system", "content": about}, *written]


def _written(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] in _RESULTS:
        text = f"<tool_response>\n{message['content'] or ''}\n</tool_response>"
        return {"role": "user", "content": text}
    calls = message.get("tool_calls")
    if not calls:
        return message
    texts = [message["content"]] if message["content"] else []
    texts += [_call(call["function"]) for call in calls]
    others = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**others, "content": "\n".join(texts)}


def _call(function: dict[str, Any]) -> str:
    arguments = function["arguments"]
    if not isinstance(arguments, str):
        arguments = _json(arguments)
    name = _json(function["name"])
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
