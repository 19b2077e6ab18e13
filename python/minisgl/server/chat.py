"""POST /v1/chat/completions"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from minisgl.server import checks, errors
from minisgl.server.endpoint import JsonEndpoint
from minisgl.server.generation import Delta, Generation, TokenEntry
from minisgl.server.http import Exchange, send_json
from minisgl.server.logprobs import chat_logprobs
from minisgl.server.schemas import ChatRequest, Message, StreamOptions, TokenizeRequest
from minisgl.server.sse import EventFrame, encode_json, stream_events, usage
from minisgl.text.errors import PromptTooLong
from minisgl.tokenizer import ChatTemplateError

if TYPE_CHECKING:
    from minisgl.text.frontend import TextFrontend
    from minisgl.tokenizer import Tokenizer

MAX_TEMPLATE_ERROR = 500  # characters


async def encode_messages(
    text: TextFrontend,
    request: ChatRequest | TokenizeRequest,
    messages: list[Message],
    max_tokens: int,
) -> list[int]:
    """The token ids of a conversation, up to where the answer begins. ApiError 400, also when
    there are surely more than `max_tokens`.
    """
    continued = bool(request.continue_final_message)
    if continued and request.add_generation_prompt:
        raise errors.bad_request(
            "'continue_final_message' and 'add_generation_prompt' can't both be true: "
            "the answer goes on with the last message, or begins another one.",
            param="continue_final_message",
        )
    try:
        return await text.encode_chat(
            checks.plain_messages(messages),
            template_kwargs=checks.template_variables(request),
            add_generation_prompt=request.add_generation_prompt is not False and not continued,
            continue_final_message=continued,
            add_special_tokens=bool(request.add_special_tokens),
            max_tokens=max_tokens,
        )
    except ChatTemplateError as error:  # says what the template has against the messages
        raise errors.bad_request(str(error)[:MAX_TEMPLATE_ERROR], param="messages") from None
    except PromptTooLong as error:
        raise errors.surely_too_long(error, "messages") from None


class ChatCompletions(JsonEndpoint):
    """Chat, streaming and not."""

    decoder = msgspec.json.Decoder(ChatRequest, strict=False)

    async def answer(self, exchange: Exchange, request: ChatRequest, arrived: float) -> None:
        """Answers a conversation. Raises ApiError 400, 429 or 503."""
        checks.check_chat(request)
        state = self.state
        text = state.frontend()
        info = state.client.info
        prompt_ids = await encode_messages(text, request, request.messages, info.max_model_len)
        if not prompt_ids:
            raise errors.bad_request(
                "The model's chat template makes an empty prompt of the messages.", param="messages"
            )
        wanted = request.max_completion_tokens
        if wanted is None:
            wanted = request.max_tokens
        params = checks.sampling_params(
            request,
            max_tokens=checks.fit(len(prompt_ids), wanted, info.max_model_len, param="messages"),
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            prompt_logprobs=None,
        )
        bad_words = await text.encode_words(params.bad_words)
        fields = {
            "id": f"chatcmpl-{exchange.request_id}",
            "object": "chat.completion.chunk" if request.stream else "chat.completion",
            "created": int(time.time()),
            "model": state.model_name,
        }
        with Generation(state.client, text, state.metrics, arrived=arrived) as generation:
            exchange.begin(generation)
            generation.submit(
                prompt_ids,
                params,
                n=request.n or 1,
                include_stop=bool(request.include_stop_str_in_output),
                continues_prompt=bool(request.continue_final_message),
                bad_words=bad_words,
            )
            if request.stream:
                tokenizer = text.tokenizer if request.logprobs else None
                events = ChatEvents(fields, request.stream_options, generation, tokenizer)
                await stream_events(exchange, generation, events)
            else:
                tokenizer = text.tokenizer if request.logprobs else None
                choices = await _collect(generation, request.n or 1, tokenizer)
                await send_json(
                    exchange.send, {**fields, "choices": choices, "usage": usage(generation)}
                )


async def _collect(
    generation: Generation, num_choices: int, tokenizer: Tokenizer | None
) -> list[dict[str, Any]]:
    texts: list[list[str]] = [[] for _ in range(num_choices)]
    entries: list[list[TokenEntry]] = [[] for _ in range(num_choices)]
    reasons: list[str | None] = [None] * num_choices
    while generation.num_live:
        for delta in await generation.ready():
            texts[delta.index].append(delta.text)
            entries[delta.index] += delta.entries
            reasons[delta.index] = delta.finish_reason
    return [
        {
            "index": index,
            "message": {"role": "assistant", "content": "".join(texts[index]), "refusal": None},
            "logprobs": None if tokenizer is None else chat_logprobs(tokenizer, entries[index]),
            "finish_reason": reasons[index],
        }
        for index in range(num_choices)
    ]


class ChatEvents:
    """Chunks: the role, content, a finish reason. With a tokenizer they carry logprobs."""

    def __init__(
        self,
        fields: dict[str, Any],
        options: StreamOptions | None,
        generation: Generation,
        tokenizer: Tokenizer | None,
    ) -> None:
        self._frame = EventFrame(fields, options, generation)
        self._tokenizer = tokenizer
        self._begun: set[int] = set()

    def event(self, delta: Delta) -> bytes:
        """The chunks that a delta makes, or b"" where it has nothing to show."""
        frame = self._frame
        head = frame.head + b"%d" % delta.index
        data = b""
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            data = (
                head
                + b',"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
                + frame.tail
            )
        if delta.text or delta.entries:
            logprobs = b"null"
            if self._tokenizer is not None:
                logprobs = encode_json(chat_logprobs(self._tokenizer, delta.entries))
            data += b"".join(
                (
                    head,
                    b',"delta":{"content":',
                    encode_json(delta.text),
                    b'},"logprobs":',
                    logprobs,
                    b',"finish_reason":null',
                    frame.tail,
                )
            )
        if delta.finish_reason is not None:
            reason = encode_json(delta.finish_reason)
            data += head + b',"delta":{},"logprobs":null,"finish_reason":' + reason + frame.tail
        return data

    def last(self) -> bytes:
        """What follows the choices' last chunks: usage where it was asked for, and [DONE]."""
        return self._frame.last()
