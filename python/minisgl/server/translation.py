"""What the APIs that are translated onto chat, /v1/responses and /v1/messages, call otherwise than
chat does: one row per field, with a column per API.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from minisgl.server import errors
from minisgl.server.errors import ApiError
from minisgl.server.schemas import GenerationRequest

_RESPONSES, _MESSAGES = 0, 1
_Row = tuple[str | None, str | None]

_ONE_ANSWER = "ask for each answer with a request of its own"
_CHAT = "use /v1/chat/completions"

# Fields of GenerationRequest that mean something else there, or nothing: what to do instead. None
# where the field means what it means in chat, or the API has one of this name.
_NOT_HERE: dict[str, _Row] = {
    "n": (_ONE_ANSWER, _ONE_ANSWER),
    "best_of": (_ONE_ANSWER, _ONE_ANSWER),
    "stop": (None, "use 'stop_sequences'"),
    "max_completion_tokens": ("use 'max_output_tokens'", "use 'max_tokens'"),
    "response_format": ("use 'text.format'", "use 'output_config.format'"),
    "prompt_logprobs": (_CHAT, _CHAT),
    "return_token_ids": (_CHAT, _CHAT),
    "truncate_prompt_tokens": ("use 'truncation'", None),
    "truncation_side": ("use 'truncation'", None),
    "stream_options": (
        "the last event has the usage in any case; leave it out",
        "the events have the usage in any case; leave it out",
    ),
}
# Whether a value of these, which isn't null, asks for anything. A value of the others does.
_ASKS: dict[str, Callable[[Any], bool]] = {
    "n": lambda count: bool(count != 1),
    "best_of": lambda count: bool(count != 1),
    "stop": any,
    "return_token_ids": bool,
    "stream_options": lambda options: bool(options.include_usage or options.continuous_usage_stats),
}

# Where the shared checks see a fault, as a pattern, and where it stands there.
_PLACES: dict[str, _Row] = {
    r"^messages\b.*": ("input", "messages"),
    r"^max(_completion)?_tokens\b": ("max_output_tokens", "max_tokens"),
    r"^stop\b": (None, "stop_sequences"),
    r"^logprobs\b": ("include", None),
    r"^response_format\b(\.json_schema\b)?": ("text.format", "output_config.format"),
    r"^verbosity\b": ("text.verbosity", None),
    r"^reasoning_effort\b": ("reasoning.effort", "output_config.effort"),
    r"^thinking_token_budget\b": (None, "thinking.budget_tokens"),
    r"^parallel_tool_calls\b": (None, "tool_choice.disable_parallel_tool_use"),
    r"^tool_choice\.function\b": ("tool_choice", "tool_choice"),
    r"(?<=tool_choice\.)allowed_tools\.": ("", None),
    r"(?<=\])\.function\.parameters\b": (".parameters", ".input_schema"),
    r"(?<=\])\.function\b": ("", ""),  # of 'tools[0].function.name'
}


class Translation:
    """What one of the APIs calls otherwise."""

    def __init__(self, column: int) -> None:
        self._not_here = {
            name: advice for name, row in _NOT_HERE.items() if (advice := row[column]) is not None
        }
        self._places = [
            (re.compile(pattern), name)
            for pattern, row in _PLACES.items()
            if (name := row[column]) is not None
        ]

    def check(self, request: GenerationRequest) -> None:
        """ApiError 400 for a field that means something else here, or nothing, with what to do
        instead.
        """
        for name, advice in self._not_here.items():
            value = getattr(request, name)
            if value is not None and (name not in _ASKS or _ASKS[name](value)):
                raise errors.unsupported(name, f"'{name}' is not supported here: {advice}.")

    def renamed(self, error: ApiError) -> ApiError:
        """An error of the shared checks with the names that the client knows, in its sentence,
        too.
        """
        given = error.param
        if given is None or (param := self._renamed(given)) == given:
            return error
        message = error.message
        for name in (given, re.split(r"[.\[]", given)[0]):
            message = message.replace(f"'{name}'", f"'{self._renamed(name)}'")
        return ApiError(
            error.status,
            message,
            type=error.type,
            param=param,
            code=error.code,
            headers=error.headers,
            prompt_tokens=error.prompt_tokens,
        )

    def _renamed(self, given: str) -> str:
        for place, name in self._places:
            given = place.sub(name, given)
        return given


RESPONSES = Translation(_RESPONSES)
MESSAGES = Translation(_MESSAGES)
