"""POST /v1/score, as vLLM has it: how much texts are alike, by the cosine of their embeddings."""

from __future__ import annotations

import asyncio
import time

import msgspec

from minisgl.engine.similarity import cosine, pairs
from minisgl.sampling_params import ParameterError
from minisgl.server import errors
from minisgl.server.embedding_schemas import ScoreRequest, Texts
from minisgl.server.embeddings import (
    PooledEndpoint,
    check_size,
    encode_inputs,
    pooled_usage,
    pooling_params,
)
from minisgl.server.http import Exchange, send_json


class Score(PooledEndpoint):
    """A score per text of `text_2`: beside the one text of `text_1`, or the one at its place."""

    decoder = msgspec.json.Decoder(ScoreRequest, strict=False)

    async def answer(self, exchange: Exchange, request: ScoreRequest, arrived: float) -> None:
        """Raises ApiError 400, 429 or 503."""
        first, second = _listed(request.text_1, "text_1"), _listed(request.text_2, "text_2")
        try:
            compared = pairs(len(first), len(second))
        except ParameterError as error:
            raise errors.refused(error) from None
        self.state.frontend()
        count = len(first) + len(second)
        check_size(count, self.state.client.info.hidden_size, "text_2")
        prompts = await encode_inputs(self.state, request, first, "text_1")
        prompts += await encode_inputs(self.state, request, second, "text_2")
        with self.batch(exchange, request, arrived) as batch:
            exchange.begin(batch)
            embeddings = [b""] * count
            async for index, embedding in batch.embed(prompts, pooling_params(request)):
                embeddings[index] = embedding
            data = []
            for index, (one, other) in enumerate(compared):
                score = cosine(embeddings[one], embeddings[other])
                data.append({"index": index, "object": "score", "score": score})
                if len(compared) > 1:
                    await asyncio.sleep(0)  # others have their turn
            answer = {
                "id": f"score-{exchange.request_id}",
                "object": "list",
                "created": int(time.time()),
                "model": self.state.answer_name(request.model),
                "data": data,
                "usage": pooled_usage(batch),
            }
            await send_json(exchange.send, answer)


def _listed(texts: Texts, param: str) -> list[str]:
    """ApiError 400 where there is none."""
    listed = [texts] if isinstance(texts, str) else texts
    if not listed:
        raise errors.bad_request(f"'{param}' is empty: it must have at least 1 text.", param=param)
    return listed
