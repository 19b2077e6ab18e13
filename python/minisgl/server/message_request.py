"""From a request of /v1/messages to the ChatRequest that asks for the same."""

from __future__ import annotations

from typing import Any

import msgspec

from minisgl.server import body_errors, errors
from minisgl.server.checks import template_effort
from minisgl.server.message_schemas import CountTokensRequest, MessagesRequest, Tool
from minisgl.server.message_turns import messages_of, needed
from minisgl.server.schemas import ChatRequest, GenerationRequest
from minisgl.server.translation import MESSAGES

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_THINKS = {"enabled": True, "adaptive": True, "disabled": False}


def chat_request(request: CountTokensRequest, *, limits_thoughts: bool) -> ChatRequest:
    """The ChatRequest that asks for the same. ApiError 400 for what this API knows and can't
    honour. `limits_thoughts`: the model's thoughts can be closed when their budget is used up.
    """
    MESSAGES.check(request)
    fields: dict[str, Any] = {
        name: getattr(request, name) for name in GenerationRequest.__struct_fields__
    }
    config, metadata = request.output_config, request.metadata
    effort = config.effort if config is not None else None
    messages = messages_of(request.system, request.messages)
    fields |= {
        "messages": messages,
        "max_tokens": request.max_tokens if isinstance(request, MessagesRequest) else None,
        "stop": request.stop_sequences,
        "stream_options": None,
        "metadata": None,
        "user": (metadata.user_id if metadata is not None else None) or request.user,
        "reasoning_effort": template_effort(effort),
        "response_format": _response_format(request),
        "chat_template_kwargs": _template_variables(request),
        "thinking_token_budget": _budget(request) if limits_thoughts else None,
        "continue_final_message": messages[-1].role == "assistant" or None,
        **_tools(request),
    }
    if messages[-1].tool_calls:
        raise errors.bad_request(
            "The last message has a 'tool_use' block: a message with its 'tool_result' must "
            "follow.",
            param="messages",
        )
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return msgspec.convert(given, ChatRequest, strict=False)
    except msgspec.ValidationError as error:
        raise MESSAGES.renamed(body_errors.undecodable(error, b"")) from None


def ignored_names(request: CountTokensRequest, *, limits_thoughts: bool) -> list[str]:
    """Fields that mean something and have no effect here, with their places."""
    names = [
        f"tools[].{name}"
        for name in ("input_examples", "defer_loading", "allowed_callers")
        if any(getattr(tool, name) for tool in request.tools or ())
    ]
    if request.context_management is not None and request.context_management.get("edits"):
        names.append("context_management.edits")
    if _budget(request) is not None and not limits_thoughts:
        names.append("thinking.budget_tokens")
    if any(
        block.type == "redacted_thinking"
        for turn in request.messages
        if not isinstance(turn.content, str)
        for block in turn.content
    ):
        names.append("messages[].content[].data")
    return names


def _budget(request: CountTokensRequest) -> int | None:
    """Tokens of a thought; None where a whole answer may not have more."""
    if request.thinking is None or not isinstance(request, MessagesRequest):
        return None
    budget = request.thinking.budget_tokens
    return None if budget is None or budget >= request.max_tokens else budget


def _template_variables(request: CountTokensRequest) -> dict[str, Any]:
    """Thoughts are for those that ask for them. Templates call the switch by two names; those that
    have none pay no heed to it.
    """
    thinking = request.thinking
    if thinking is not None and thinking.type not in _THINKS:
        raise errors.unsupported(
            "thinking.type",
            f"'thinking' of the type '{thinking.type[:64]}' is not supported: 'enabled', "
            "'adaptive' and 'disabled' are.",
        )
    thinks = thinking is not None and _THINKS[thinking.type]
    return {
        "enable_thinking": thinks,
        "thinking": thinks,
        **(request.chat_template_kwargs or {}),
    }


def _response_format(request: CountTokensRequest) -> dict[str, Any] | None:
    config = request.output_config
    given = config.format if config is not None else None
    place = "output_config.format"
    if given is None:
        given, place = request.output_format, "output_format"
    elif request.output_format is not None:
        raise errors.bad_request(
            "'output_config.format' and 'output_format' are two names of one thing: send the "
            "first.",
            param="output_format",
        )
    if given is None:
        return None
    if given.type != "json_schema":
        raise errors.unsupported(
            f"{place}.type",
            f"'{place}' of the type '{given.type[:64]}' is not supported: 'json_schema' is.",
        )
    schema = needed(given, "schema", place)
    return {"type": "json_schema", "json_schema": {"schema": schema}}


def _tools(request: CountTokensRequest) -> dict[str, Any]:
    """The fields of a ChatRequest about tools."""
    tools = [_function(tool, f"tools[{index}]") for index, tool in enumerate(request.tools or ())]
    given = request.tool_choice
    choice: Any = None
    if given is not None and given.type == "tool":
        name = needed(given, "name", "tool_choice")
        choice = {"type": "function", "function": {"name": name}}
    elif given is not None:
        choice = _CHOICES[given.type]
    single = given is not None and given.disable_parallel_tool_use
    return {
        "tools": tools or None,
        "tool_choice": choice,
        "parallel_tool_calls": False if single else None,
    }


def _function(tool: Tool, place: str) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise errors.unsupported(
            f"{place}.type",
            f"Tools of type '{tool.type[:64]}' are not supported: the server runs none itself, "
            "and knows only those that are described, with an 'input_schema'.",
        )
    about = {
        "name": needed(tool, "name", place),
        "description": tool.description,
        "parameters": needed(tool, "input_schema", place),
        "strict": tool.strict,
    }
    return {
        "type": "function",
        "function": {name: value for name, value in about.items() if value is not None},
    }
