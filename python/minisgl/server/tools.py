"""The tools of a request: which of them the answer may call, and how templates read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from minisgl.server import errors
from minisgl.server.schemas import ChatRequest, FunctionTool, Tool, ToolChoice

NO_ARGUMENTS = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class ToolUse:
    """What an answer has to do with tools."""

    functions: tuple[FunctionTool, ...] = ()  # that it may call; none of them: nothing is parsed
    required: bool = False  # it is one call or several, and nothing else
    parallel: bool = True  # it may make more than one call

    @property
    def strict(self) -> bool:
        """Whether the arguments of some function are to be held to their schema."""
        return any(function.strict for function in self.functions)


def tool_use(request: ChatRequest) -> ToolUse:
    """What a request's fields for tools come to. ApiError 400 for what can't be honoured."""
    _check_legacy(request)
    functions = functions_of(request.tools)
    choice = request.tool_choice
    parallel = request.parallel_tool_calls is not False
    if isinstance(choice, ToolChoice):
        chosen, required = _chosen(choice, functions)
        return ToolUse(chosen, required, parallel)
    if choice == "none":
        return ToolUse()
    if choice not in (None, "", "auto", "required"):
        raise errors.bad_request(
            "'tool_choice' must be 'none', 'auto', 'required' or an object that names a function, "
            f"got {choice!r}.",
            param="tool_choice",
        )
    if choice == "required" and not functions:
        raise errors.bad_request(
            "'tool_choice' is 'required', and there are no 'tools'.", param="tool_choice"
        )
    return ToolUse(functions, choice == "required", parallel)


def functions_of(tools: Sequence[Tool] | None) -> tuple[FunctionTool, ...]:
    """The functions that are offered. ApiError 400 for a tool that is none."""
    return tuple(_function(tool, f"tools[{index}]") for index, tool in enumerate(tools or ()))


def plain_tools(functions: Sequence[FunctionTool]) -> list[dict[str, Any]]:
    """Functions as templates read them. `strict` is no business of the model's."""
    plain = []
    for function in functions:
        fields: dict[str, Any] = {"name": function.name}
        if function.description is not None:
            fields["description"] = function.description
        fields["parameters"] = function.parameters or NO_ARGUMENTS
        plain.append({"type": "function", "function": fields})
    return plain


def _check_legacy(request: ChatRequest) -> None:
    if request.functions and request.function_call != "none":
        raise errors.unsupported(
            "functions", "'functions' is not supported: offer them as 'tools'."
        )
    if request.function_call and request.function_call not in ("none", "auto"):
        raise errors.unsupported(
            "function_call", "'function_call' is not supported: use 'tool_choice'."
        )


def _function(tool: Tool, path: str) -> FunctionTool:
    if tool.type not in (None, "function"):
        raise errors.unsupported(
            f"{path}.type",
            f"Tools of type {tool.type!r} are not supported: only functions, which the client "
            "calls itself ({'type': 'function', 'function': {'name': ...}}).",
        )
    if tool.function is None:
        raise errors.bad_request("A tool must have a 'function'.", param=f"{path}.function")
    return tool.function


def _chosen(
    choice: ToolChoice, functions: Sequence[FunctionTool]
) -> tuple[tuple[FunctionTool, ...], bool]:
    """The functions that a choice leaves, and whether one of them has to be called."""
    if choice.type == "allowed_tools" and choice.allowed_tools is not None:
        names = list(_allowed_names(choice))
        required = choice.allowed_tools.mode == "required"
    elif choice.type == "function" and choice.function is not None:
        names, required = [choice.function.name], True
    else:
        raise errors.unsupported(
            "tool_choice",
            f"A 'tool_choice' of type {choice.type!r} is not supported: it must be "
            "{'type': 'function', 'function': {'name': ...}} or {'type': 'allowed_tools', "
            "'allowed_tools': {'mode': 'auto', 'tools': [...]}}.",
        )
    for name in names:
        if all(function.name != name for function in functions):
            raise errors.bad_request(
                f"'tool_choice' names the function {name!r}, which isn't one of the 'tools'.",
                param="tool_choice",
            )
    return tuple(function for function in functions if function.name in names), required


def _allowed_names(choice: ToolChoice) -> Iterator[str]:
    assert choice.allowed_tools is not None
    for index, tool in enumerate(choice.allowed_tools.tools):
        if tool.type not in (None, "function") or tool.function is None:
            path = f"tool_choice.allowed_tools.tools[{index}]"
            raise errors.unsupported(path, f"'{path}' must name a function.")
        yield tool.function.name
