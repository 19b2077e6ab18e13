"""POST /api/embed and /api/embeddings: Ollama's names for what /v1/embeddings does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from minisgl.engine.similarity import numbers
from minisgl.server.embedding_schemas import EmbeddingRequest
from minisgl.server.embeddings import PooledEndpoint, check_size, encode_inputs, pooling_params
from minisgl.server.errors import ApiError
from minisgl.server.http import Exchange, send_json
from minisgl.server.ollama import OllamaEndpoint
from minisgl.server.ollama_request import unloads
from minisgl.server.ollama_schemas import OllamaEmbeddingsRequest, OllamaEmbedRequest
from minisgl.server.sse import encode_json


class _Embedded(OllamaEndpoint, PooledEndpoint):
    """What both endpoints do."""

    async def embed(
        self,
        exchange: Exchange,
        request: EmbeddingRequest,
        texts: Sequence[str],
        param: str,
        arrived: float,
    ) -> tuple[list[msgspec.Raw], dict[str, int]]:
        """The embedding of each text of the field `param`, as JSON, and the answer's figures.
        Raises ApiError 400, 429 or 503.
        """
        self.state.frontend()
        hidden_size = self.state.client.info.hidden_size
        check_size(len(texts), request.dimensions or hidden_size, param)
        try:
            prompts = await encode_inputs(self.state, request, texts, param)
        except ApiError as error:
            error.message = error.message.replace("'truncate_prompt_tokens'", "'truncate'")
            raise
        params = pooling_params(
            request, normalize=request.normalize is not False, dimensions=request.dimensions
        )
        embeddings = [b""] * len(prompts)
        with self.batch(exchange, request, arrived) as batch:
            exchange.begin(batch)
            submitted = time.perf_counter()
            async for index, embedding in batch.embed(prompts, params):
                embeddings[index] = embedding
            shown = []
            for embedding in embeddings:
                shown.append(msgspec.Raw(encode_json(numbers(embedding))))
                await asyncio.sleep(0)  # others have their turn
        spans = {
            "total_duration": time.perf_counter() - arrived,
            "load_duration": submitted - arrived,
        }
        return shown, {
            **{name: max(1, round(seconds * 1e9)) for name, seconds in spans.items()},
            "prompt_eval_count": batch.num_prompt_tokens,
        }


class OllamaEmbed(_Embedded):
    """POST /api/embed"""

    decoder = msgspec.json.Decoder(OllamaEmbedRequest, strict=False)

    async def answer(self, exchange: Exchange, request: OllamaEmbedRequest, arrived: float) -> None:
        """An embedding per text. Raises ApiError 400, 429 or 503."""
        unloads(request.keep_alive)
        given = request.input
        texts = [given] if isinstance(given, str) and given else given or []
        # Of a text that is too long, its first tokens are left, unless the request says otherwise.
        asked = EmbeddingRequest(
            dimensions=request.dimensions or None,
            truncate_prompt_tokens=None if request.truncate is False else -1,
            truncation_side="right",
        )
        answer: dict[str, Any] = {"model": request.model or self.state.model_name}
        shown, figures = await self.embed(exchange, asked, texts, "input", arrived)
        await send_json(exchange.send, {**answer, "embeddings": shown, **figures})


class OllamaEmbeddings(_Embedded):
    """POST /api/embeddings, which came before the other: one text's, of the length that it has."""

    decoder = msgspec.json.Decoder(OllamaEmbeddingsRequest, strict=False)

    async def answer(
        self, exchange: Exchange, request: OllamaEmbeddingsRequest, arrived: float
    ) -> None:
        """The text's embedding. Raises ApiError 400, 429 or 503."""
        unloads(request.keep_alive)
        texts = [request.prompt] if request.prompt else []
        asked = EmbeddingRequest(
            normalize=False, truncate_prompt_tokens=-1, truncation_side="right"
        )
        shown, _ = await self.embed(exchange, asked, texts, "prompt", arrived)
        await send_json(exchange.send, {"embedding": shown[0] if shown else []})
