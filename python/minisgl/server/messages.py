"""/v1/messages and /v1/messages/count_tokens: Anthropic's API as a translation onto what chat
does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from minisgl.server.chat_core import ChatJob, count_tokens, prepare
from minisgl.server.endpoint import JsonEndpoint
from minisgl.server.errors import ApiError
from minisgl.server.http import Exchange, send_json
from minisgl.server.message_errors import error_event
from minisgl.server.message_events import MessageOutput, event
from minisgl.server.message_request import chat_request, ignored_names
from minisgl.server.message_schemas import CountTokensRequest, MessagesRequest
from minisgl.server.sse import stream_events
from minisgl.server.translation import MESSAGES
from minisgl.text.parts import Part, TextPart
from minisgl.text.parts_reader import joined

if TYPE_CHECKING:
    from minisgl.server.choice import Answer, Delta
    from minisgl.server.generation import Generation
    from minisgl.server.schemas import ChatRequest
    from minisgl.server.state import ServerState


class Messages(JsonEndpoint):
    """POST /v1/messages, streaming and not."""

    decoder = msgspec.json.Decoder(MessagesRequest, strict=False)

    async def answer(self, exchange: Exchange, request: MessagesRequest, arrived: float) -> None:
        """Answers a conversation. Raises ApiError 400, 429 or 503."""
        state = self.state
        chat = _translated(state, request)
        try:
            job = await prepare(state, chat, exchange.api_key)
        except ApiError as error:
            raise MESSAGES.renamed(error) from None
        with self.generation(exchange, chat, job.text, arrived) as generation:
            exchange.begin(generation)
            job.submit(generation)
            about = {"id": f"msg_{exchange.request_id}", "model": state.answer_name(request.model)}
            message = MessageEvents(about, request, job, generation)
            if request.stream:

                def failed(error: ApiError) -> bytes:
                    return error_event(error, exchange.request_id)

                await stream_events(exchange, generation, message, failed)
                return
            answer = (await generation.collect())[0]
            await send_json(exchange.send, message.whole(answer))


class CountTokens(JsonEndpoint):
    """POST /v1/messages/count_tokens: how many tokens the prompt of such a message has."""

    decoder = msgspec.json.Decoder(CountTokensRequest, strict=False)

    async def answer(self, exchange: Exchange, request: CountTokensRequest, arrived: float) -> None:
        """Raises ApiError 400 or 503."""
        state = self.state
        chat = _translated(state, request)
        try:
            count = await count_tokens(state, chat, exchange.api_key)
        except ApiError as error:
            raise MESSAGES.renamed(error) from None
        counted: dict[str, Any] = {"input_tokens": count}
        if request.context_management is not None:
            counted["context_management"] = {"original_input_tokens": count}
        await send_json(exchange.send, counted)


def _translated(state: ServerState, request: CountTokensRequest) -> ChatRequest:
    """ApiError 400, or 503 while nothing is served."""
    state.frontend()  # before that, the formats aren't chosen
    limits_thoughts = state.formats.limits_thoughts
    state.ignored_fields.add(ignored_names(request, limits_thoughts=limits_thoughts))
    return chat_request(request, limits_thoughts=limits_thoughts)


class MessageEvents:
    """A message: its events, or all of it."""

    def __init__(
        self, about: dict[str, Any], request: MessagesRequest, job: ChatJob, generation: Generation
    ) -> None:
        """`about`: what the message says of itself, id and model."""
        thinking = request.thinking
        self._output = MessageOutput(
            shows_thoughts=thinking is None or thinking.display != "omitted",
            keeps_blocks=not request.stream,
        )
        self._about = about
        self._generation = generation
        # The context has room for fewer tokens than the answer may have.
        self._context_ends = job.params.max_tokens < request.max_tokens
        self._edits: dict[str, Any] = {}
        if request.context_management is not None:
            self._edits["context_management"] = {"applied_edits": []}
        self._begun = False
        self._end: dict[str, Any] = {"stop_reason": None, "stop_sequence": None}

    def event(self, delta: Delta) -> bytes:
        """The events that a delta makes; before the first one's, the message begins."""
        data = b""
        if not self._begun:
            self._begun = True
            data = event("message_start", message=self._message())
        data += self._output.add(_parts(delta.parts, delta.text))
        if delta.finish_reason is not None:
            self._end = self._ending(delta)
        return data

    def last(self) -> bytes:
        """The end of the last block and of the message."""
        return b"".join(
            (
                self._output.finish(),
                event(
                    "message_delta",
                    delta=self._end,
                    usage=message_usage(self._generation),
                    **self._edits,
                ),
                event("message_stop"),
            )
        )

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The message of a whole answer."""
        self._output.add(joined(_parts(answer.parts, "".join(answer.texts))))
        self._output.finish()
        self._end = self._ending(answer)
        return {**self._message(), **self._edits}

    def _message(self) -> dict[str, Any]:
        return {
            **self._about,
            "type": "message",
            "role": "assistant",
            "content": self._output.blocks,
            **self._end,
            "usage": message_usage(self._generation),
        }

    def _ending(self, ended: Delta | Answer) -> dict[str, Any]:
        """Why an answer ended, and the stop sequence that ended it."""
        if ended.finish_reason == "tool_calls":
            return {"stop_reason": "tool_use", "stop_sequence": None}
        if ended.finish_reason == "length":
            reason = "model_context_window_exceeded" if self._context_ends else "max_tokens"
            return {"stop_reason": reason, "stop_sequence": None}
        if isinstance(ended.stop_reason, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": ended.stop_reason}
        return {"stop_reason": "end_turn", "stop_sequence": None}


def _parts(parts: list[Part] | None, text: str) -> list[Part]:
    if parts is not None:
        return parts
    return [TextPart(text)] if text else []


def message_usage(generation: Generation) -> dict[str, Any]:
    """Anthropic's usage so far: prompt tokens that were found in the prefix cache count apart."""
    cached = generation.num_cached_tokens
    shown: dict[str, Any] = {
        "input_tokens": generation.num_prompt_tokens - cached,
        "cache_creation_input_tokens": 0,  # what is kept of a prompt costs nobody anything
        "cache_read_input_tokens": cached,
        "output_tokens": generation.num_generated_tokens,
    }
    if (thought := generation.num_reasoning_tokens) is not None:
        shown["output_tokens_details"] = {"thinking_tokens": thought}
    return shown
