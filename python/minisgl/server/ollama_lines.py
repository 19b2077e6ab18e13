"""What a generation gives as Ollama's API shows it: lines of JSON, or one object."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import msgspec

from minisgl.server.dialects import Dialect
from minisgl.server.errors import ApiError
from minisgl.server.logprobs import chat_logprobs
from minisgl.server.sse import encode_json
from minisgl.text.parts import ArgumentsPart, CallPart, ReasoningPart, TextPart

if TYPE_CHECKING:
    from minisgl.server.choice import Delta
    from minisgl.server.generation import Generation
    from minisgl.text.parts import Part
    from minisgl.tokenizer import Tokenizer

_any_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
# Characters by which Unicode, and a client that goes by it, ends a line: they stand in strings
# alone, where JSON has another way to write them.
_LINE_ENDS = tuple((end.encode(), f"\\u{ord(end):04x}".encode()) for end in "\x85\u2028\u2029")


def now() -> str:
    """The time of day, as answers say it."""
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


def _error_body(error: ApiError, request_id: str) -> bytes:
    """{"error"}"""
    return encode_json({"error": error.message})


OLLAMA = Dialect(_error_body)


def json_line(value: dict[str, Any]) -> bytes:
    """A line of JSON, which ends nowhere but at its end."""
    data = encode_json(value)
    for end, escaped in _LINE_ENDS:
        if end in data:
            data = data.replace(end, escaped)
    return data + b"\n"


@dataclass(slots=True)
class Piece:
    """What an answer has got: words, words of thoughts, whole calls, its tokens' probabilities."""

    content: str = ""
    thinking: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.content or self.thinking or self.calls or self.logprobs)


class PieceReader:
    """Makes pieces of one answer's deltas. Calls are given out whole, as objects: one that was cut,
    or whose arguments are no object, stands in the content, as its text.
    """

    def __init__(self, tokenizer: Tokenizer, *, has_thinking: bool, has_logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._has_thinking = has_thinking
        self._has_logprobs = has_logprobs
        self._open: CallPart | None = None  # the call whose arguments are coming
        self._arguments: list[str] = []
        self._num_calls = 0

    def read(self, delta: Delta) -> Piece:
        """What a delta adds."""
        piece = Piece()
        if self._has_logprobs and delta.entries:
            piece.logprobs = chat_logprobs(self._tokenizer, delta.entries)["content"]
        if delta.parts is None:
            piece.content = delta.text
            return piece
        for part in delta.parts:
            self._add(part, piece)
        if delta.finish_reason is not None:
            self._close(piece, cut=delta.finish_reason == "length")
        return piece

    def _add(self, part: Part, piece: Piece) -> None:
        if isinstance(part, ArgumentsPart):
            self._arguments.append(part.text)
            return
        self._close(piece)
        if isinstance(part, TextPart):
            piece.content += part.text
        elif isinstance(part, ReasoningPart):
            if self._has_thinking:
                piece.thinking += part.text
        else:
            self._open = part

    def _close(self, piece: Piece, *, cut: bool = False) -> None:
        """The call that is open has all of its arguments, or what there is of them."""
        call, self._open = self._open, None
        if call is None:
            return
        text = "".join(self._arguments) or "{}"
        self._arguments.clear()
        try:
            _any_object.decode(text)
            # On one line, as all of an answer's line is.
            arguments = msgspec.Raw(msgspec.json.format(text.encode(), indent=-1))
        except (ValueError, RecursionError):
            name = encode_json(call.name).decode()
            piece.content += f'{{"name": {name}, "arguments": {text}' + "}" * (not cut)
            return
        function = {"index": self._num_calls, "name": call.name, "arguments": arguments}
        piece.calls.append({"id": call.id, "function": function})
        self._num_calls += 1


@dataclass(frozen=True)
class Timing:
    """When a request came, and when the engine had it: time.perf_counter()."""

    arrived: float
    submitted: float

    def shown(self, generation: Generation) -> dict[str, int]:
        """Nanoseconds, once the generation has its end: before its first step, up to its first
        token, from there on, and all in all. What a client divides by is never 0.
        """
        first = ended = time.perf_counter()
        if (seconds := generation.first_token_seconds) is not None:
            first = self.arrived + seconds
        began = min(first, self.submitted + (generation.queued_seconds or 0.0))
        spans = {
            "total_duration": ended - self.arrived,
            "load_duration": began - self.arrived,
            "prompt_eval_duration": first - began,
            "eval_duration": ended - first,
        }
        return {name: max(1, round(seconds * 1e9)) for name, seconds in spans.items()}


class Lines:
    """The lines of an answer, or its object. `is_chat`: it is a message."""

    def __init__(
        self,
        model: str,
        generation: Generation,
        timing: Timing,
        reader: PieceReader,
        *,
        is_chat: bool,
    ) -> None:
        """`model`: its name as the request has it."""
        self._model = model
        self._generation = generation
        self._timing = timing
        self._reader = reader
        self._is_chat = is_chat
        self._finish_reason: str | None = None

    def event(self, delta: Delta) -> bytes:
        """The line that a delta makes, or b"" where it has nothing to show."""
        piece = self._read(delta)
        if not piece:
            return b""
        return json_line({**self._fields(piece), "done": False})

    def last(self) -> bytes:
        """The last line: why the answer ended, and its figures."""
        return json_line(self._ended(Piece()))

    def failed(self, error: ApiError) -> bytes:
        """The last line of an answer that can't go on."""
        return json_line({"error": error.message})

    async def whole(self) -> dict[str, Any]:
        """The object of an answer that isn't streamed, once it has its end."""
        pieces = []
        while self._generation.num_live:
            pieces += [self._read(delta) for delta in await self._generation.ready()]
        return self._ended(
            Piece(
                "".join(piece.content for piece in pieces),
                "".join(piece.thinking for piece in pieces),
                [call for piece in pieces for call in piece.calls],
                [entry for piece in pieces for entry in piece.logprobs],
            )
        )

    def _read(self, delta: Delta) -> Piece:
        self._finish_reason = delta.finish_reason
        return self._reader.read(delta)

    def _fields(self, piece: Piece) -> dict[str, Any]:
        return {
            "model": self._model,
            "created_at": now(),
            **said(piece, is_chat=self._is_chat),
            **({"logprobs": piece.logprobs} if piece.logprobs else {}),
        }

    def _ended(self, piece: Piece) -> dict[str, Any]:
        generation = self._generation
        return {
            **self._fields(piece),
            "done": True,
            # A call ends an answer as its words do.
            "done_reason": "length" if self._finish_reason == "length" else "stop",
            "prompt_eval_count": generation.num_prompt_tokens,
            "eval_count": generation.num_generated_tokens,
            **self._timing.shown(generation),
        }


def said(piece: Piece, *, is_chat: bool) -> dict[str, Any]:
    """A piece as an answer has it: {message}, or {response, thinking}."""
    thinking = {"thinking": piece.thinking} if piece.thinking else {}
    if not is_chat:
        return {"response": piece.content, **thinking}
    calls = {"tool_calls": piece.calls} if piece.calls else {}
    return {"message": {"role": "assistant", "content": piece.content, **thinking, **calls}}
