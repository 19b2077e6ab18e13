"""Request bodies: from bytes to what the engine would be asked for, or to a refusal that is one."""

from __future__ import annotations

import json
import sys

import atheris

with atheris.instrument_imports(include=["minisgl"]):
    import msgspec

    from minisgl.server import checks
    from minisgl.server.chat import ChatCompletions
    from minisgl.server.completions import Completions
    from minisgl.server.decoding import IgnoredFields, decode
    from minisgl.server.embedding_schemas import EmbeddingRequest
    from minisgl.server.embeddings import Embeddings
    from minisgl.server.errors import ApiError
    from minisgl.server.message_errors import error_body
    from minisgl.server.message_request import chat_request
    from minisgl.server.message_schemas import CountTokensRequest
    from minisgl.server.messages import CountTokens, Messages
    from minisgl.server.prompts import separate_prompts
    from minisgl.server.schemas import ChatRequest, CompletionRequest
    from minisgl.server.score import Score
    from minisgl.server.structured import form_of
    from minisgl.server.tokens import Detokenize, Tokenize
    from minisgl.server.tools import tool_use
    from minisgl.server.translation import MESSAGES

CHAT = (ChatCompletions, Completions, Messages, CountTokens)
ENDPOINTS = (*CHAT, Tokenize, Detokenize, Embeddings, Score)
DECODERS = [endpoint.decoder for endpoint in ENDPOINTS]


def check(data: bytes) -> None:
    for decoder in DECODERS:
        try:
            use(decode(decoder, data, IgnoredFields()))
        except ApiError as error:
            check_refusal(error)


def check_refusal(error: ApiError) -> None:
    assert 400 <= error.status < 500
    assert set(json.loads(error.body())["error"]) == {"message", "type", "param", "code"}
    assert json.loads(error_body(MESSAGES.renamed(error), "id"))["type"] == "error"
    assert len(error.message) < 2000, error.message


def use(request: msgspec.Struct) -> None:
    if isinstance(request, CountTokensRequest):
        request = chat_request(request, limits_thoughts=True)
    if isinstance(request, ChatRequest):
        checks.check_chat(request)
        tool_use(request)
        msgspec.json.encode(checks.plain_messages(request.messages))
        sampling(request, request.max_completion_tokens or request.max_tokens)
    elif isinstance(request, CompletionRequest):
        checks.check_completion(request)
        assert all(isinstance(prompt, str | list) for prompt in separate_prompts(request.prompt))
        sampling(request, 16 if request.max_tokens is msgspec.UNSET else request.max_tokens)
    elif isinstance(request, EmbeddingRequest) and request.input is not None:
        assert all(isinstance(one, str | list) for one in separate_prompts(request.input, "input"))


def sampling(request: ChatRequest | CompletionRequest, wanted: int | None) -> None:
    form_of(request)
    params = checks.sampling_params(
        request,
        {},
        max_tokens=checks.fit(1, wanted, 2**20, param="prompt"),
        logprobs=None,
        prompt_logprobs=None,
        grammar=None,
    )
    assert params.seed is None or 0 <= params.seed < 2**64


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
