"""POST /v1/chat/completions"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from minisgl.server.chat_core import prepare
from minisgl.server.checks import check_length
from minisgl.server.choice import Answer, Delta, TokenEntry
from minisgl.server.endpoint import JsonEndpoint
from minisgl.server.http import Exchange, send_json
from minisgl.server.logprobs import chat_logprobs, prompt_logprobs
from minisgl.server.schemas import ChatRequest
from minisgl.server.sse import EventFrame, encode_json, stream_events, usage
from minisgl.text.parts import CallPart, Part, ReasoningPart, TextPart, sort_parts

if TYPE_CHECKING:
    from minisgl.tokenizer import Tokenizer


class ChatCompletions(JsonEndpoint):
    """Chat, streaming and not."""

    decoder = msgspec.json.Decoder(ChatRequest, strict=False)

    async def answer(self, exchange: Exchange, request: ChatRequest, arrived: float) -> None:
        """Answers a conversation. Raises ApiError 400, 429 or 503."""
        check_length(request)
        state = self.state
        job = await prepare(state, request, exchange.api_key)
        text = job.text
        fields = {
            "id": f"chatcmpl-{exchange.request_id}",
            "object": "chat.completion.chunk" if request.stream else "chat.completion",
            "created": int(time.time()),
            "model": state.answer_name(request.model),
            "service_tier": None,
            "system_fingerprint": None,
        }
        with self.generation(exchange, request, text, arrived) as generation:
            exchange.begin(generation)
            job.submit(generation)
            shape = ChatShape(text.tokenizer, request, job.prompt_ids)
            if request.stream:
                frame = EventFrame(fields, request.stream_options, generation)
                await stream_events(exchange, generation, ChatEvents(frame, shape))
                return
            answers = await generation.collect()
            if job.params.prompt_logprobs is None:
                whole = shape.whole(answers)
            else:  # this may take long
                whole = await text.off_loop(_encoded_parts, shape, answers)
            await send_json(exchange.send, {**fields, **whole, "usage": usage(generation)})


def _encoded_parts(shape: ChatShape, answers: list[Answer]) -> dict[str, Any]:
    return {name: msgspec.Raw(encode_json(part)) for name, part in shape.whole(answers).items()}


class ChatShape:
    """What a chat's choices carry besides their text."""

    def __init__(self, tokenizer: Tokenizer, request: ChatRequest, prompt_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self._request = request
        self._prompt_ids = prompt_ids
        self.has_logprobs = bool(request.logprobs)
        self.has_token_ids = bool(request.return_token_ids)
        self.has_reasoning = request.include_reasoning is not False
        self.has_tools = bool(request.tools) and request.tool_choice != "none"

    def logprobs(self, entries: list[TokenEntry]) -> dict[str, Any] | None:
        """The log probabilities of some of a choice's tokens, where they were asked for."""
        return chat_logprobs(self._tokenizer, entries) if self.has_logprobs else None

    def prompt(self, answers: list[Answer]) -> dict[str, Any]:
        """What was asked for of the prompt: {prompt_token_ids, prompt_logprobs}, each where it was.
        Choice 0 has the log probabilities; before it has, there are none.
        """
        about: dict[str, Any] = {}
        if self.has_token_ids:
            about["prompt_token_ids"] = self._prompt_ids
        if self._request.prompt_logprobs is not None and answers:
            about["prompt_logprobs"] = prompt_logprobs(
                self._tokenizer, answers[0].prompt_logprobs or [], self._request.prompt_logprobs
            )
        return about

    def whole(self, answers: list[Answer]) -> dict[str, Any]:
        """A whole answer's choices, and what was asked for of the prompt."""
        return {
            "choices": [self._choice(index, one) for index, one in enumerate(answers)],
            **self.prompt(answers),
        }

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        choice = {
            "index": index,
            "message": self._message(answer),
            "logprobs": self.logprobs(answer.entries),
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }
        if self.has_token_ids:
            choice["token_ids"] = answer.token_ids
        return choice

    def _message(self, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "refusal": None, "tool_calls": []}
        if answer.parts is None:
            return {**message, "content": "".join(answer.texts)}
        said = sort_parts(answer.parts)
        if said.reasoning and self.has_reasoning:
            message["reasoning_content"] = message["reasoning"] = said.reasoning
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in said.calls
        ]
        return {**message, "content": None if said.calls and not said.content else said.content}


def part_delta(part: Part) -> dict[str, Any]:
    """What of a message a part adds, as chunks have it."""
    if isinstance(part, TextPart):
        return {"content": part.text}
    if isinstance(part, ReasoningPart):
        return {"reasoning_content": part.text, "reasoning": part.text}
    call: dict[str, Any] = {"index": part.index}
    if isinstance(part, CallPart):
        function = {"name": part.name, "arguments": ""}
        call |= {"id": part.id, "type": "function", "function": function}
    else:
        call["function"] = {"arguments": part.text}
    return {"tool_calls": [call]}


class ChatEvents:
    """Chunks: the role, content, a finish reason."""

    def __init__(self, frame: EventFrame, shape: ChatShape) -> None:
        self._frame = frame
        self._shape = shape
        self._has_logprobs = shape.has_logprobs
        self._has_token_ids = shape.has_token_ids
        self._begun: set[int] = set()

    def event(self, delta: Delta) -> bytes:
        """The chunks that a delta makes, or b"" where it has nothing to show."""
        frame = self._frame
        head = frame.head + b"%d" % delta.index
        data = b""
        if delta.index not in self._begun:
            data = self._first(head)
            self._begun.add(delta.index)
        if delta.parts is not None:
            data += self._parsed(delta, delta.parts, head)
        elif delta.text or delta.entries or (self._has_token_ids and delta.token_ids):
            content = b'{"content":' + encode_json(delta.text) + b"}"
            data += self._chunk(head, content, delta)
        if delta.finish_reason is not None:
            reasons = (encode_json(delta.finish_reason), encode_json(delta.stop_reason))
            data += b"".join(
                (
                    head,
                    b',"delta":{},"logprobs":null,"finish_reason":%b,"stop_reason":%b' % reasons,
                    frame.tail,
                )
            )
        return data

    def around_text(self, index: int, like: Part | None) -> tuple[bytes, ...] | None:
        """As TextEvents says."""
        if self._has_logprobs or self._has_token_ids or self._frame.changes:
            return None
        if isinstance(like, ReasoningPart) and not self._shape.has_reasoning:
            return ()
        said = encode_json({"content": ""} if like is None else part_delta(like))
        around = said.replace(b'""', b'"\0"').split(b"\0")
        around[0] = self._frame.head + b'%d,"delta":' % index + around[0]
        around[-1] += b',"logprobs":null,"finish_reason":null' + self._frame.tail
        return tuple(around)

    def _chunk(self, head: bytes, said: bytes, delta: Delta | None) -> bytes:
        """A chunk, with the tokens of a delta where they are asked for."""
        tail, logprobs = self._frame.tail, b"null"
        if self._has_token_ids and delta is not None:
            tail = b',"token_ids":' + encode_json(delta.token_ids) + tail
        if self._has_logprobs and delta is not None:
            logprobs = encode_json(self._shape.logprobs(delta.entries))
        return b"".join(
            (head, b',"delta":', said, b',"logprobs":', logprobs, b',"finish_reason":null', tail)
        )

    def _parsed(self, delta: Delta, parts: list[Part], head: bytes) -> bytes:
        """A chunk per part, of which the first has the delta's tokens."""
        shown = [
            encode_json(part_delta(part))
            for part in parts
            if self._shape.has_reasoning or not isinstance(part, ReasoningPart)
        ]
        if not shown and (delta.entries or (self._has_token_ids and delta.token_ids)):
            shown = [b"{}"]
        return b"".join(
            self._chunk(head, said, None if position else delta)
            for position, said in enumerate(shown)
        )

    def _first(self, head: bytes) -> bytes:
        """A choice's first chunk. The answer's first also says what was asked for of the prompt."""
        tail = self._frame.tail
        if not self._begun and (about := self._shape.prompt([])):
            tail = b"}]," + encode_json(about)[1:-1] + tail.removeprefix(b"}]")
        content = b"null" if self._shape.has_tools else b'""'
        role = b',"delta":{"role":"assistant","content":' + content
        return head + role + b'},"logprobs":null,"finish_reason":null' + tail

    def last(self) -> bytes:
        """What follows the choices' last chunks: usage where it was asked for, and [DONE]."""
        return self._frame.last()
