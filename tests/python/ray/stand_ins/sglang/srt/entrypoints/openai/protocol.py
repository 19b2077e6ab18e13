"""Stands in for SGLang's classes of requests and answers, which Ray Serve LLM builds on where there
is no vLLM: any fields, checked by whoever serves.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Request(_Anything):
    model: str | None = None
    stream: bool = False


class ChatCompletionRequest(_Request):
    messages: list[dict[str, Any]]


class CompletionRequest(_Request):
    prompt: Any


class ChatCompletionResponse(_Anything):
    pass


class ChatCompletionStreamResponse(_Anything):
    pass


class CompletionResponse(_Anything):
    pass


class CompletionStreamResponse(_Anything):
    pass


class TokenizeRequest(_Request):
    pass


class TokenizeResponse(_Anything):
    pass


class DetokenizeRequest(_Request):
    pass


class DetokenizeResponse(_Anything):
    pass


class EmbeddingRequest(_Request):
    pass


class EmbeddingResponse(_Anything):
    pass


class ScoringRequest(_Request):
    pass


class ScoringResponse(_Anything):
    pass
