"""/v1/responses: a translation onto what chat does, and what is kept of it for later requests."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from minisgl.server import errors
from minisgl.server.chat_core import ChatJob, count_tokens, prepare
from minisgl.server.endpoint import JsonEndpoint
from minisgl.server.errors import ApiError
from minisgl.server.http import Exchange, send_json
from minisgl.server.kept_items import KeptItems
from minisgl.server.response_events import EventWriter, ResponseOutput
from minisgl.server.response_items import input_items, messages_of, stored_items
from minisgl.server.response_request import chat_request, check_request
from minisgl.server.response_schemas import LOGPROBS, InputTokensRequest, Item, ResponsesRequest
from minisgl.server.response_store import StoredResponse, Turn
from minisgl.server.sse import encode_json, stream_events, usage
from minisgl.server.translation import RESPONSES

if TYPE_CHECKING:
    from minisgl.server.choice import Delta
    from minisgl.server.generation import Generation
    from minisgl.server.response_store import Owner
    from minisgl.server.schemas import ChatRequest
    from minisgl.server.state import ServerState


class Responses(JsonEndpoint):
    """POST /v1/responses, streaming and not."""

    decoder = msgspec.json.Decoder(ResponsesRequest, strict=False)

    async def answer(self, exchange: Exchange, request: ResponsesRequest, arrived: float) -> None:
        """Answers a conversation. Raises ApiError 400, 404, 429 or 503."""
        state, owner = self.state, exchange.api_key
        asked = await translated(state, exchange, request)
        chat = asked.chat
        try:
            job = await prepare(state, chat, owner)
        except ApiError as error:
            raise RESPONSES.renamed(error) from None
        record = ResponseRecord(state, owner, request, asked.items, asked.previous, job)
        with self.generation(exchange, chat, job.text, arrived) as generation:
            exchange.begin(generation)
            job.submit(generation)
            events = ResponseEvents(record, generation, job)
            if request.stream:
                await stream_events(exchange, generation, events, events.failed)
                return
            while generation.num_live:
                for delta in await generation.ready():
                    events.event(delta)
            events.last()
            await send_json(exchange.send, events.response)


class CountInputTokens(JsonEndpoint):
    """POST /v1/responses/input_tokens: how many tokens the prompt of such a request has."""

    decoder = msgspec.json.Decoder(InputTokensRequest, strict=False)

    async def answer(self, exchange: Exchange, request: InputTokensRequest, arrived: float) -> None:
        """Raises ApiError 400, 404 or 503."""
        state = self.state
        chat = (await translated(state, exchange, request)).chat
        try:
            count = await count_tokens(state, chat, exchange.api_key)
        except ApiError as error:
            raise RESPONSES.renamed(error) from None
        counted = {"object": "response.input_tokens", "input_tokens": count}
        await send_json(exchange.send, counted)


class Translated(NamedTuple):
    """What a request asks for, as chat has it."""

    chat: ChatRequest
    items: list[Item]  # the request's own
    previous: Turn | None  # what it goes on behind


async def translated(
    state: ServerState, exchange: Exchange, request: ResponsesRequest
) -> Translated:
    """ApiError 400, 404 or 503."""
    check_request(request)
    kept = KeptItems(state, exchange)
    previous = None
    earlier: list[Item] = []
    if (named := request.previous_response_id) is not None:
        previous = state.responses.find(exchange.api_key, named, param="previous_response_id").turn
        earlier = await kept.of_turns(previous.chain(), "previous_response_id")
    own = await kept.resolve(input_items(request))
    if any(item.encrypted_content is not None for item in own):
        state.ignored_fields.add(["input[].encrypted_content"])
    messages = messages_of(request.instructions, [*earlier, *own], len(earlier))
    if not messages:
        raise errors.missing("input")
    return Translated(chat_request(request, messages), own, previous)


class ResponseRecord:
    """A response as it is shown, and what is kept of it when it has its end."""

    def __init__(
        self,
        state: ServerState,
        owner: Owner,
        request: ResponsesRequest,
        items: list[Item],
        previous: Turn | None,
        job: ChatJob,
    ) -> None:
        """`items`: the request's own."""
        self._state = state
        self._owner = owner
        self._previous = previous
        self.has_logprobs = LOGPROBS in (request.include or ())
        self.hex = uuid.uuid4().hex
        self._items = None if request.store is False else items
        self._fields = {
            "id": f"resp_{self.hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": state.answer_name(request.model),
            "background": False,
            "service_tier": None,
            **_echo(request, job),
        }

    def shown(self, status: str, **fields: Any) -> dict[str, Any]:
        """The response's object."""
        return {
            **self._fields,
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **fields,
        }

    def keep(self, response: bytes, output: list[dict[str, Any]]) -> None:
        """Stores the response, unless the request says not to."""
        if self._items is None:
            return
        own: list[Any] = list(stored_items(self._items, self.hex))
        turn = Turn(self._previous, encode_json([*own, *output]))
        stored = StoredResponse(response, turn, len(own))
        self._state.responses.add(self._owner, f"resp_{self.hex}", stored)


def _echo(request: ResponsesRequest, job: ChatJob) -> dict[str, Any]:
    """What a response says of its request, and of what stands for the fields that it hasn't."""
    config, reasoning = request.text, request.reasoning
    form = config.format if config is not None else None
    choice = request.tool_choice
    return {
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": None,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.effort if reasoning is not None else None,
            "summary": reasoning.summary if reasoning is not None else None,
        },
        "safety_identifier": request.safety_identifier,
        "store": request.store is not False,
        "temperature": job.params.temperature,
        "text": {
            "format": {"type": "text"} if form is None else _given(form),
            "verbosity": config.verbosity if config is not None else None,
        },
        "tool_choice": _given(choice) if isinstance(choice, msgspec.Struct) else choice or "auto",
        "tools": [_given(tool) for tool in request.tools or ()],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": job.params.top_p,
        "truncation": "disabled",
        "user": request.user,
    }


def _given(struct: msgspec.Struct) -> dict[str, Any]:
    """The fields of a request's object that aren't null."""
    return {
        name: value for name, value in msgspec.structs.asdict(struct).items() if value is not None
    }


class ResponseEvents:
    """The events of a response: that it has begun, its items, and its end."""

    def __init__(self, record: ResponseRecord, generation: Generation, job: ChatJob) -> None:
        self.response = b""  # JSON, once it has its end
        self._record = record
        self._generation = generation
        self._writer = EventWriter()
        self._output = ResponseOutput(
            self._writer, record.hex, job.text.tokenizer, has_logprobs=record.has_logprobs
        )
        self._begun = False
        self._complete = True

    def event(self, delta: Delta) -> bytes:
        """The events that a delta makes; before the first one's, the response begins."""
        data = b""
        if not self._begun:
            self._begun = True
            response = msgspec.Raw(encode_json(self._record.shown("in_progress")))
            for kind in ("response.created", "response.in_progress"):
                data += self._writer.event(kind, response=response)
        data += self._output.add(delta)
        if delta.finish_reason == "length":
            self._complete = False
        return data

    def last(self) -> bytes:
        """The end of the last item and of the response, which is stored then."""
        complete, output, generation = self._complete, self._output, self._generation
        data = output.finish(complete=complete)
        status = "completed" if complete else "incomplete"
        self.response = encode_json(
            self._record.shown(
                status,
                incomplete_details=None if complete else {"reason": "max_output_tokens"},
                output=output.items,
                usage=response_usage(generation),
            )
        )
        self._record.keep(self.response, output.items)
        return data + self._writer.event(f"response.{status}", response=msgspec.Raw(self.response))

    def failed(self, error: ApiError) -> bytes:
        """The end of a response that has begun and can't go on."""
        data = self._output.finish(complete=False)
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        response = self._record.shown(
            "failed",
            error={"code": code, "message": error.message},
            output=self._output.items,
            usage=response_usage(self._generation),
        )
        return data + self._writer.event("response.failed", response=response)


def response_usage(generation: Generation) -> dict[str, Any]:
    """The usage of chat by this API's names."""
    chat = usage(generation)
    thought = chat.get("completion_tokens_details") or {}
    return {
        "input_tokens": chat["prompt_tokens"],
        "input_tokens_details": {**chat["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": chat["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thought.get("reasoning_tokens") or 0},
        "total_tokens": chat["total_tokens"],
    }
