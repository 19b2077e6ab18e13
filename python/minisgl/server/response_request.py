"""From a request of /v1/responses to the ChatRequest that asks for the same."""

from __future__ import annotations

from typing import Any

import msgspec

from minisgl.server import body_errors, errors
from minisgl.server.response_schemas import (
    LOGPROBS,
    ResponsesRequest,
    TextFormat,
    Tool,
    ToolChoice,
)
from minisgl.server.schemas import ChatRequest, GenerationRequest, Message
from minisgl.server.translation import RESPONSES


def check_request(request: ResponsesRequest) -> None:
    """ApiError 400 for what this API knows and can't honour."""
    RESPONSES.check(request)
    if request.truncation == "auto":
        raise errors.unsupported(
            "truncation", "Only the truncation 'disabled' is supported: send fewer items."
        )
    if request.top_logprobs and LOGPROBS not in (request.include or ()):
        raise errors.bad_request(
            f"'top_logprobs' needs 'include' to have '{LOGPROBS}'.", param="top_logprobs"
        )
    if request.reasoning is not None:
        for name in ("summary", "generate_summary"):
            if getattr(request.reasoning, name) not in (None, "auto"):
                raise errors.unsupported(
                    f"reasoning.{name}",
                    f"'reasoning.{name}' is not supported: thoughts are shown whole, as the "
                    "content of their items.",
                )


def chat_request(request: ResponsesRequest, messages: list[Message]) -> ChatRequest:
    """The ChatRequest that asks for the same. ApiError 400."""
    fields: dict[str, Any] = {
        name: getattr(request, name) for name in GenerationRequest.__struct_fields__
    }
    config, reasoning = request.text, request.reasoning
    fields |= {
        "messages": messages,
        "max_completion_tokens": request.max_output_tokens,
        "stream_options": None,
        "logprobs": LOGPROBS in (request.include or ()),
        "top_logprobs": request.top_logprobs,
        "reasoning_effort": reasoning.effort if reasoning is not None else None,
        "verbosity": config.verbosity if config is not None else None,
        "response_format": _response_format(config.format if config is not None else None),
        "chat_template_kwargs": request.chat_template_kwargs,
        "parallel_tool_calls": request.parallel_tool_calls,
        **_tools(request),
    }
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return msgspec.convert(given, ChatRequest, strict=False)
    except msgspec.ValidationError as error:
        raise RESPONSES.renamed(body_errors.undecodable(error, b"")) from None


def _response_format(form: TextFormat | None) -> dict[str, Any] | None:
    if form is None or form.type == "text":
        return None
    if form.type != "json_schema":
        return {"type": form.type}
    if form.name is None or form.schema is None:
        raise errors.missing("text.format." + ("name" if form.name is None else "schema"))
    about = {name: getattr(form, name) for name in ("name", "schema", "description", "strict")}
    return {
        "type": "json_schema",
        "json_schema": {name: value for name, value in about.items() if value is not None},
    }


def _tools(request: ResponsesRequest) -> dict[str, Any]:
    """The fields 'tools' and 'tool_choice' of a ChatRequest."""
    tools = [_function(tool, index) for index, tool in enumerate(request.tools or ())]
    choice: Any = request.tool_choice
    if isinstance(choice, ToolChoice):
        if choice.type == "allowed_tools":
            named = [_named(tool, index) for index, tool in enumerate(choice.tools or ())]
            allowed = {"mode": choice.mode or "auto", "tools": named}
            choice = {"type": "allowed_tools", "allowed_tools": allowed}
        elif choice.type == "function":
            choice = {"type": "function", "function": {"name": choice.name or ""}}
        else:
            raise errors.unsupported(
                "tool_choice.type",
                f"Tools of type '{choice.type[:64]}' are not supported: functions are.",
            )
    return {"tools": tools or None, "tool_choice": choice}


def _named(tool: dict[str, Any], index: int) -> dict[str, Any]:
    if tool.get("type") != "function" or not isinstance(tool.get("name"), str):
        place = f"tool_choice.tools[{index}]"
        raise errors.unsupported(place, f"'{place}' must name a function.")
    return {"type": "function", "function": {"name": tool["name"]}}


def _function(tool: Tool, index: int) -> dict[str, Any]:
    place = f"tools[{index}]"
    if tool.type != "function":
        raise errors.unsupported(
            f"{place}.type",
            f"Tools of type '{tool.type[:64]}' are not supported: the server runs none itself, "
            "and a function's calls are the client's to run.",
        )
    if tool.name is None:
        raise errors.missing(f"{place}.name")
    about = {name: getattr(tool, name) for name in ("name", "description", "parameters", "strict")}
    return {
        "type": "function",
        "function": {name: value for name, value in about.items() if value is not None},
    }
