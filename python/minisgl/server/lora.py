"""LoRA adapters while the server runs, as vLLM's API has them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from minisgl.engine.adapters import AdapterError
from minisgl.server.decoding import decode
from minisgl.server.errors import adapter_refused, adapter_unknown, bad_request
from minisgl.server.http import Exchange, read_body
from minisgl.server.state import ServerState

MAX_BODY_BYTES = 2**16

Name = Annotated[str, Meta(min_length=1, max_length=256)]


class LoadRequest(msgspec.Struct, frozen=True):
    """A folder in PEFT's form, and what requests call it."""

    lora_name: Name
    lora_path: Annotated[str, Meta(min_length=1, max_length=4096)]


class UnloadRequest(msgspec.Struct, frozen=True):
    """One that was loaded."""

    lora_name: Name
    lora_int_id: int | None = None  # vLLM's number, which says nothing here


_load_decoder = msgspec.json.Decoder(LoadRequest)
_unload_decoder = msgspec.json.Decoder(UnloadRequest)


class LoraPages:
    """The methods are Starlette endpoints."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def load(self, request: Request) -> Response:
        """POST /v1/load_lora_adapter: answers once requests may name it, wherever they run."""
        state = self._state
        wish: LoadRequest = decode(
            _load_decoder, await self._body(request), state.ignored_fields, strict=True
        )
        if wish.lora_name in state.model_names:
            raise bad_request(f"{wish.lora_name!r} is the model's own name.", param="lora_name")
        state.frontend()
        try:
            await state.client.load_adapter(wish.lora_name, wish.lora_path)
        except AdapterError as error:
            raise adapter_refused(str(error)) from None
        return PlainTextResponse(f"Success: LoRA adapter {wish.lora_name!r} added successfully.")

    async def unload(self, request: Request) -> Response:
        """POST /v1/unload_lora_adapter: requests that have it go on to their ends."""
        state = self._state
        wish: UnloadRequest = decode(
            _unload_decoder, await self._body(request), state.ignored_fields, strict=True
        )
        try:
            state.client.unload_adapter(wish.lora_name)
        except AdapterError as error:
            raise adapter_unknown(str(error)) from None
        return PlainTextResponse(f"Success: LoRA adapter {wish.lora_name!r} removed successfully.")

    async def _body(self, request: Request) -> bytes:
        args = self._state.args
        exchange: Exchange = request.scope["minisgl.exchange"]
        return await read_body(
            request.scope,
            exchange.receive,
            self._state.bodies,
            max_bytes=min(MAX_BODY_BYTES, args.max_body_bytes),
            timeout=args.body_timeout,
        )
