"""POST /api/chat and /api/generate: Ollama's API, a translation onto what the others do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from minisgl.server.chat_core import prepare
from minisgl.server.completion_core import prepare_completion
from minisgl.server.endpoint import JsonEndpoint
from minisgl.server.http import JSON_LINES_HEADERS, Exchange, send_json
from minisgl.server.ollama_lines import Lines, Piece, PieceReader, Timing, now, said
from minisgl.server.ollama_request import (
    chat_request,
    completion_request,
    templated_request,
    unloads,
)
from minisgl.server.ollama_schemas import OllamaChatRequest, OllamaGenerateRequest, OllamaRequest
from minisgl.server.sse import stream_events

if TYPE_CHECKING:
    from minisgl.server.chat_core import ChatJob
    from minisgl.server.completion_core import CompletionJob
    from minisgl.server.schemas import GenerationRequest
    from minisgl.server.state import ServerState

_LATEST = ":latest"


def tagged(name: str) -> str:
    """A model's name as this API shows it: with a tag."""
    return name if ":" in name else name + _LATEST


def check_tagged(state: ServerState, name: str | None) -> None:
    """ApiError 404 unless the name, with or without the tag "latest", is the served model's."""
    state.check_model(own_name(state, name))


def own_name(state: ServerState, name: str | None) -> str | None:
    """The name as the server has it: without the tag "latest" that it may have here."""
    if not name or name in state.model_names or state.client.adapters.find(name) is not None:
        return name
    return name.removesuffix(_LATEST) or name


class OllamaEndpoint(JsonEndpoint):
    """What requests of this API have in common."""

    any_media_type = True  # its users call it with curl and no header

    def check_model(self, request: Any) -> None:
        """ApiError 404 where the request names a model that isn't served."""
        check_tagged(self.state, request.model)

    def adapter_of(self, request: Any) -> int:
        """The model's name may have a tag."""
        return self.state.adapter_of(own_name(self.state, request.model))


class _Answers(OllamaEndpoint):
    """What chat and generate have in common."""

    is_chat: bool

    async def respond(
        self,
        exchange: Exchange,
        request: OllamaRequest,
        asked: GenerationRequest,
        job: ChatJob | CompletionJob,
        arrived: float,
    ) -> None:
        """Generates what `job` is about, which was made of `asked`, which was made of the request.
        Raises ApiError 400, 429 or 503.
        """
        with self.generation(exchange, asked, job.text, arrived) as generation:
            exchange.begin(generation)
            timing = Timing(arrived, time.perf_counter())
            job.submit(generation)
            reader = PieceReader(
                job.text.tokenizer,
                has_thinking=request.think is not False,
                has_logprobs=bool(request.logprobs),
            )
            model = request.model or self.state.model_name
            lines = Lines(model, generation, timing, reader, is_chat=self.is_chat)
            if asked.stream:
                await stream_events(
                    exchange, generation, lines, lines.failed, headers=JSON_LINES_HEADERS
                )
            else:
                await send_json(exchange.send, await lines.whole())

    async def load(self, exchange: Exchange, request: OllamaRequest) -> None:
        """Answers a request that asks for nothing, by which clients have a model loaded or
        unloaded: it is there, and stays there. Raises ApiError 503 while it is still loading.
        """
        reason = "unload" if unloads(request.keep_alive) else "load"
        self.state.frontend()
        await send_json(
            exchange.send,
            {
                "model": request.model or self.state.model_name,
                "created_at": now(),
                **said(Piece(), is_chat=self.is_chat),
                "done": True,
                "done_reason": reason,
            },
        )


class OllamaChat(_Answers):
    """POST /api/chat"""

    decoder = msgspec.json.Decoder(OllamaChatRequest, strict=False)
    is_chat = True

    async def answer(self, exchange: Exchange, request: OllamaChatRequest, arrived: float) -> None:
        """Answers a conversation. Raises ApiError 400, 429 or 503."""
        unloads(request.keep_alive)
        if not request.messages:
            await self.load(exchange, request)
            return
        self.state.frontend()  # before that, the formats aren't chosen
        asked = chat_request(request, self.state.formats)
        job = await prepare(self.state, asked, exchange.api_key)
        await self.respond(exchange, request, asked, job, arrived)


class OllamaGenerate(_Answers):
    """POST /api/generate"""

    decoder = msgspec.json.Decoder(OllamaGenerateRequest, strict=False)
    is_chat = False

    async def answer(
        self, exchange: Exchange, request: OllamaGenerateRequest, arrived: float
    ) -> None:
        """Answers a prompt. Raises ApiError 400, 429 or 503."""
        unloads(request.keep_alive)
        if not request.prompt:
            await self.load(exchange, request)
        elif request.raw or request.suffix:
            completion = completion_request(request)
            job = await prepare_completion(self.state, completion, exchange.api_key)
            await self.respond(exchange, request, completion, job, arrived)
        else:
            self.state.frontend()
            asked = templated_request(request, self.state.formats)
            chat = await prepare(self.state, asked, exchange.api_key)
            await self.respond(exchange, request, asked, chat, arrived)
