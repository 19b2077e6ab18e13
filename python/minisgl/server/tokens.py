"""/tokenize, /detokenize and /tokenizer_info, as vLLM has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from minisgl.server.chat_core import encode_messages
from minisgl.server.endpoint import JsonEndpoint
from minisgl.server.errors import bad_request
from minisgl.server.http import Exchange, send_json
from minisgl.server.logprobs import token_text
from minisgl.server.prompts import longest_text
from minisgl.server.schemas import DetokenizeRequest, TokenizeRequest

if TYPE_CHECKING:
    from minisgl.tokenizer import Tokenizer


class Tokenize(JsonEndpoint):
    """A prompt or messages to token ids: {count, max_model_len, tokens, token_strs}"""

    decoder = msgspec.json.Decoder(TokenizeRequest, strict=False)

    async def answer(self, exchange: Exchange, request: TokenizeRequest, arrived: float) -> None:
        """Raises ApiError 400 or 503."""
        text = self.state.frontend()
        if (request.prompt is None) == (request.messages is None):
            raise bad_request(
                "Exactly one of 'prompt' and 'messages' must be given.", param="prompt"
            )
        max_model_len = self.state.client.info.max_model_len
        max_tokens = longest_text(max_model_len)
        if request.messages is not None:
            ids = (await encode_messages(text, request, request.messages, max_tokens)).ids
        else:
            ids = await text.encode(
                request.prompt or "",
                add_special_tokens=request.add_special_tokens is not False,
                max_tokens=max_tokens,
            )
        token_strs = None
        if request.return_token_strs:
            token_strs = await text.off_loop(_token_strs, text.tokenizer, ids, size=len(ids))
        await send_json(
            exchange.send,
            {
                "count": len(ids),
                "max_model_len": max_model_len,
                "tokens": ids,
                "token_strs": token_strs,
            },
        )


class Detokenize(JsonEndpoint):
    """Token ids to text: {prompt}"""

    decoder = msgspec.json.Decoder(DetokenizeRequest, strict=False)

    async def answer(self, exchange: Exchange, request: DetokenizeRequest, arrived: float) -> None:
        """Raises ApiError 400 or 503."""
        text = self.state.frontend()
        vocab_size = self.state.client.info.vocab_size
        highest = max(request.tokens, default=0)
        if highest >= vocab_size:
            raise bad_request(
                f"Token ids must be between 0 and {vocab_size - 1}, got {highest}.", param="tokens"
            )
        # A client that asks for the text of special tokens gets it; so does one that says nothing,
        # as in vLLM.
        skip = bool(request.skip_special_tokens)
        ids = request.tokens
        prompt = await text.off_loop(_decode, text.tokenizer, ids, skip, size=len(ids))
        await send_json(exchange.send, {"prompt": prompt})


def tokenizer_info(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json, as far as the model's files say what stands there: the class, special
    tokens by name and by id, the chat template.
    """
    hidden = ("vocab_file", "merges_file", "tokenizer_file", "name_or_path")
    info = {name: value for name, value in tokenizer.config.items() if name not in hidden}
    return {"bos_token": None, "eos_token": None, "pad_token": None, **info}


def _token_strs(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [token_text(tokenizer.token_bytes(token_id)) for token_id in ids]


def _decode(tokenizer: Tokenizer, ids: list[int], skip_special_tokens: bool) -> str:
    return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
