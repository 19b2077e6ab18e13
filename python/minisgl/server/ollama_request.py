"""From a request of Ollama's API to the ChatRequest or CompletionRequest that asks for the same."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import Any

from minisgl.server import errors
from minisgl.server.checks import template_effort
from minisgl.server.ollama_schemas import (
    OPTION_FIELDS,
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaMessage,
    OllamaRequest,
    Options,
)
from minisgl.server.schemas import (
    ChatRequest,
    CompletionRequest,
    FunctionCall,
    JsonSchemaForm,
    Message,
    ResponseFormat,
    Tool,
    ToolCall,
)
from minisgl.text.formats import AnswerFormats

# A length of time as Go writes it, "1h30m".
_DURATION = re.compile(r"[-+]?(0|((\d+\.?\d*|\.\d+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h))+)")


def unloads(keep_alive: float | str | None) -> bool:
    """Whether a model is to be kept for no time at all. ApiError 400 for what is no length of
    time.
    """
    if not isinstance(keep_alive, str):
        return keep_alive == 0
    if not _DURATION.fullmatch(keep_alive):
        raise errors.bad_request(
            "'keep_alive' must be seconds, or a length of time such as '5m' or '1h30m', "
            f"got '{keep_alive}'.",
            param="keep_alive",
        )
    return not re.search("[1-9]", keep_alive)


def chat_request(request: OllamaChatRequest, formats: AnswerFormats) -> ChatRequest:
    """The ChatRequest that asks for the same. ApiError 400."""
    return _conversation(request, _messages(request.messages or ()), formats, request.tools)


def templated_request(request: OllamaGenerateRequest, formats: AnswerFormats) -> ChatRequest:
    """The ChatRequest of a prompt that goes through the chat template. ApiError 400."""
    messages = [Message(role="user", content=request.prompt or "")]
    if request.system:
        messages.insert(0, Message(role="system", content=request.system))
    return _conversation(request, messages, formats)


def completion_request(request: OllamaGenerateRequest) -> CompletionRequest:
    """The CompletionRequest of a prompt that stands as it is, or has a text behind its answer.
    ApiError 400.
    """
    field = "raw" if request.raw else "suffix"
    for name in ("system", "think"):
        if getattr(request, name):
            raise errors.unsupported(
                name,
                f"'{name}' is not supported together with '{field}': no chat template is used.",
            )
    num_top = request.top_logprobs or 0
    if num_top and not request.logprobs:
        raise errors.bad_request(
            "'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs"
        )
    return CompletionRequest(
        prompt=request.prompt or "",
        suffix=request.suffix,
        max_tokens=None,
        logprobs=num_top if request.logprobs else None,
        **_shared(request),
    )


def _conversation(
    request: OllamaRequest,
    messages: list[Message],
    formats: AnswerFormats,
    tools: list[Tool] | None = None,
) -> ChatRequest:
    variables: dict[str, Any] = {}
    think = request.think
    if think and formats.reasoning is None:
        raise errors.unsupported(
            "think",
            "'think' is not supported: an answer's thoughts aren't told from the rest "
            "(--reasoning-parser).",
        )
    if think is not None:
        # Templates have either name for it.
        variables = {"enable_thinking": bool(think), "thinking": bool(think)}
    return ChatRequest(
        messages=messages,
        tools=tools or None,
        logprobs=request.logprobs,
        top_logprobs=request.top_logprobs,
        chat_template_kwargs=variables or None,
        reasoning_effort=template_effort(think if isinstance(think, str) else None),
        **_shared(request),
    )


def _shared(request: OllamaRequest) -> dict[str, Any]:
    """The fields of a GenerationRequest. ApiError 400."""
    options = request.options or Options()
    for name, known in OPTION_FIELDS.items():
        value = getattr(options, name)
        if not known.is_neutral(value):
            place = f"options.{name}"
            raise errors.unsupported(place, f"'{place}' is not supported: {known.advice}.")
    length = options.num_predict
    fields = {
        "stream": request.stream is not False,
        "max_completion_tokens": length if length is not None and length > 0 else -1,
        "response_format": _form(request.format),
        **{
            name: getattr(options, name)
            for name in ("temperature", "top_k", "top_p", "min_p", "seed", "stop")
        },
    }
    if options.repeat_last_n == 0:  # no tokens are penalized, whatever the model publishes
        penalties: tuple[float | None, ...] = (1.0, 0.0, 0.0)
    else:
        penalties = options.repeat_penalty, options.presence_penalty, options.frequency_penalty
    names = ("repetition_penalty", "presence_penalty", "frequency_penalty")
    return fields | dict(zip(names, penalties, strict=True))


def _form(given: str | dict[str, Any] | None) -> ResponseFormat | None:
    if given is None or given == "":
        return None
    if given == "json":
        return ResponseFormat(type="json_object")
    if isinstance(given, str):
        raise errors.bad_request(
            f"'format' must be 'json' or a JSON schema, got '{given[:64]}'.", param="format"
        )
    return ResponseFormat(type="json_schema", json_schema=JsonSchemaForm(schema=given))


def _messages(given: Sequence[OllamaMessage]) -> list[Message]:
    """Messages as chat has them, in which each call has an id, and each result its call's: clients
    of this API leave both out. The ids of a conversation are the same whenever it is sent.
    """
    made = []
    open_calls = _OpenCalls()
    num_calls = 0
    for index, message in enumerate(given):
        if message.images:
            place = f"messages[{index}].images"
            raise errors.unsupported(
                place, f"'{place}' is not supported: the model reads and writes text."
            )
        calls = []
        for call in message.tool_calls or ():
            function = FunctionCall(call.function.name, call.function.arguments)
            call_id = call.id or f"call_{num_calls}"
            num_calls += 1
            open_calls.add(call_id, function.name)
            calls.append(ToolCall(id=call_id, type="function", function=function))
        shown = Message(
            role=message.role,
            content=None if calls and not message.content else message.content or "",
            reasoning_content=message.thinking or None,
            tool_calls=calls or None,
        )
        if message.role == "tool":
            shown.tool_call_id, shown.name = open_calls.answered_by(message)
        made.append(shown)
    return made


class _OpenCalls:
    """The calls of a conversation that have no result yet."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}  # of these calls, by their ids
        self._ids: deque[str] = deque()  # of all calls but the first ones with a result
        self._ids_of: dict[str, deque[str]] = {}  # the same of each function

    def add(self, call_id: str, name: str) -> None:
        """A call has been made."""
        self._names[call_id] = name
        self._ids.append(call_id)
        self._ids_of.setdefault(name, deque()).append(call_id)

    def answered_by(self, message: OllamaMessage) -> tuple[str | None, str | None]:
        """The id and the function's name of the call whose result a message is: the call that it
        names, else the first of the function that it names, else the first. Where there is none,
        what the message says.
        """
        call_id, name = message.tool_call_id or None, message.tool_name or None
        if call_id is None:
            ids = self._ids if name is None else self._ids_of.get(name, deque())
            while ids and ids[0] not in self._names:
                ids.popleft()
            call_id = ids[0] if ids else None
        if call_id is None:
            return None, name
        called = self._names.pop(call_id, None)
        return call_id, name or called
