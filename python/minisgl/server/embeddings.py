"""POST /v1/embeddings: what the model's last hidden states make of texts."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from minisgl.engine.similarity import numbers
from minisgl.sampling_params import PoolingParams, SamplingParams, pooled_params
from minisgl.server import checks, errors
from minisgl.server.chat_core import encode_messages
from minisgl.server.embedding_batch import EmbeddingBatch
from minisgl.server.embedding_schemas import EmbeddingRequest, PooledRequest
from minisgl.server.endpoint import JsonEndpoint
from minisgl.server.errors import MAX_TOKENIZED
from minisgl.server.http import Exchange, send_json
from minisgl.server.prompts import longest_prompt, separate_prompts, truncate
from minisgl.server.schemas import TokenizeRequest
from minisgl.server.sse import encode_json
from minisgl.text.errors import PromptTooLong

if TYPE_CHECKING:
    from minisgl.server.state import ServerState

MAX_INPUTS = 2048  # of one request
MAX_VALUES = 2**23  # numbers of an answer, which are in memory together


class PooledEndpoint(JsonEndpoint):
    """What both endpoints of embeddings do."""

    def batch(self, exchange: Exchange, request: PooledRequest, arrived: float) -> EmbeddingBatch:
        """What the engine computes for a request, in the place that its client and fields give."""
        state = self.state
        return EmbeddingBatch(
            state.client,
            state.metrics,
            arrived=arrived,
            prefix_salt=state.prefix_salt(request.cache_salt, exchange.api_key),
            standing=self.standing(exchange, request),
            session=checks.session(request, exchange.request_headers),
            adapter=exchange.adapter,
        )


class Embeddings(PooledEndpoint):
    """An embedding per input."""

    decoder = msgspec.json.Decoder(EmbeddingRequest, strict=False)

    async def answer(self, exchange: Exchange, request: EmbeddingRequest, arrived: float) -> None:
        """Raises ApiError 400, 429 or 503."""
        self.state.frontend()
        params = pooling_params(
            request, normalize=request.normalize is not False, dimensions=request.dimensions
        )
        prompts = await _prompts(self.state, request)
        data: list[Any] = [None] * len(prompts)
        with self.batch(exchange, request, arrived) as batch:
            exchange.begin(batch)
            async for index, embedding in batch.embed(prompts, params):
                data[index] = embedding
            for index, embedding in enumerate(data):
                data[index] = _shown(index, embedding, request)
                if len(data) > 1:  # others have their turn
                    await asyncio.sleep(0)
            answer = {
                "object": "list",
                "data": data,
                "model": self.state.answer_name(request.model),
                "usage": pooled_usage(batch),
            }
            await send_json(exchange.send, answer)


def check_size(count: int, dimensions: int, param: str) -> None:
    """ApiError 400 where so many embeddings would take too much memory."""
    if count * dimensions > MAX_VALUES:
        raise errors.bad_request(
            f"The request asks for too many numbers ({count} texts times {dimensions} dimensions; "
            f"limit {MAX_VALUES}): send fewer texts, or for embeddings ask for fewer 'dimensions'.",
            param=param,
        )


def pooling_params(
    request: PooledRequest, *, normalize: bool = True, dimensions: int | None = None
) -> SamplingParams:
    """What the engine is asked for, for each prompt of a request."""
    pooling = PoolingParams(
        pooling=request.pooling or "last", normalize=normalize, dimensions=dimensions
    )
    return pooled_params(pooling)


def pooled_usage(batch: EmbeddingBatch) -> dict[str, Any]:
    """OpenAI's usage of embeddings, with the part that was found in the prefix cache."""
    return {
        "prompt_tokens": batch.num_prompt_tokens,
        "total_tokens": batch.num_prompt_tokens,
        "prompt_tokens_details": {"cached_tokens": batch.num_cached_tokens},
    }


def _shown(index: int, embedding: bytes, request: EmbeddingRequest) -> msgspec.Raw:
    value: object
    if request.encoding_format == "base64":
        value = base64.b64encode(embedding).decode()
    else:
        value = numbers(embedding)
    return msgspec.Raw(encode_json({"object": "embedding", "index": index, "embedding": value}))


async def _prompts(state: ServerState, request: EmbeddingRequest) -> list[list[int]]:
    """The prompts of a request's inputs, or that of its messages. ApiError 400."""
    if request.input is not None:
        if request.messages is not None:
            raise errors.bad_request(
                "Exactly one of 'input' and 'messages' must be given, got both.", param="messages"
            )
        inputs = separate_prompts(request.input, "input")
        check_size(len(inputs), request.dimensions or state.client.info.hidden_size, "input")
        return await encode_inputs(state, request, inputs, "input")
    if request.messages is None:
        raise errors.missing("input")
    conversation = TokenizeRequest(
        messages=request.messages,
        add_generation_prompt=bool(request.add_generation_prompt),
        continue_final_message=request.continue_final_message,
        add_special_tokens=request.add_special_tokens,
        chat_template_kwargs=request.chat_template_kwargs,
    )
    longest = longest_prompt(request, state.client.info.max_model_len)
    prompt = await encode_messages(state, conversation, request.messages, longest)
    return [_fitted(state, request, prompt.ids, "messages")]


async def encode_inputs(
    state: ServerState, request: PooledRequest, inputs: Sequence[str | list[int]], param: str
) -> list[list[int]]:
    """The prompts of texts or token ids that stand in the field `param`. ApiError 400."""
    text, info = state.frontend(), state.client.info
    if len(inputs) > MAX_INPUTS:
        raise errors.bad_request(
            f"'{param}' has too many entries ({len(inputs)}; limit {MAX_INPUTS}): send them in "
            "several requests.",
            param=param,
        )
    prompts = []
    num_tokens = 0
    for number, given in enumerate(inputs):
        place = param if len(inputs) == 1 else f"{param}[{number}]"
        if number:
            await asyncio.sleep(0)  # others have their turn between two of them
        if isinstance(given, str):
            try:
                ids = await text.encode(
                    given,
                    add_special_tokens=request.add_special_tokens is not False,
                    max_tokens=longest_prompt(request, info.max_model_len),
                )
            except PromptTooLong as error:
                raise errors.surely_too_long(error, place) from None
        else:
            ids = given
        prompts.append(_fitted(state, request, ids, place))
        num_tokens += len(prompts[-1])
        if num_tokens > MAX_TOKENIZED:
            raise errors.bad_request(
                f"'{param}' has too many tokens together (at least {num_tokens}; limit "
                f"{MAX_TOKENIZED}): send its entries in several requests.",
                param=param,
            )
    return prompts


def _fitted(state: ServerState, request: PooledRequest, ids: list[int], place: str) -> list[int]:
    """A prompt as the engine gets it. ApiError 400 where it can't."""
    info = state.client.info
    if not ids:
        raise errors.bad_request(f"'{place}' is empty: it has no tokens.", param=place)
    if max(ids) >= info.vocab_size:
        raise errors.bad_request(
            f"Token ids must be between 0 and {info.vocab_size - 1}, got {max(ids)} in '{place}'.",
            param=place,
        )
    kept = truncate(ids, request, info.max_model_len)
    if len(kept) > info.max_model_len:
        raise errors.bad_request(
            f"This model's maximum context length is {info.max_model_len} tokens, but '{place}' "
            f"has {len(kept)}: shorten it, or have it cut with 'truncate_prompt_tokens'.",
            param=place,
            code="context_length_exceeded",
        )
    return kept
