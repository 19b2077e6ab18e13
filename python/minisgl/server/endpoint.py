"""What the POST endpoints share: read a body, decode it, answer while the client is there."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from starlette.types import Receive, Scope, Send

from minisgl.server import checks
from minisgl.server.decoding import decode
from minisgl.server.generation import Generation
from minisgl.server.http import Exchange, read_body, while_connected
from minisgl.server.state import ServerState

if TYPE_CHECKING:
    from minisgl.ipc.messages import Standing
    from minisgl.server.schemas import GenerationRequest
    from minisgl.text.frontend import TextFrontend

LARGE_BODY = 2**18  # bytes


class JsonEndpoint:
    """A raw ASGI endpoint: no response objects and no middleware between a stream and its socket.

    A subclass sets `decoder` and implements `answer`, which is cancelled when the client is gone
    and calls `exchange.begin` once it has the request's tokens.
    """

    decoder: ClassVar[msgspec.json.Decoder[Any]]
    any_media_type: ClassVar[bool] = False  # see read_body()

    def __init__(self, state: ServerState) -> None:
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads and decodes the body, then answers until the client is gone. Raises ApiError,
        ClientGone.
        """
        arrived = time.perf_counter()
        exchange: Exchange = scope["minisgl.exchange"]
        exchange.api_key = scope.get("minisgl.key")
        exchange.pump = self.state.pump
        args = self.state.args
        body = await read_body(
            scope,
            exchange.receive,
            self.state.bodies,
            max_bytes=args.max_body_bytes,
            timeout=args.body_timeout,
            any_media_type=self.any_media_type,
        )
        exchange.body_hold = self.state.bodies.hold(len(body))
        try:
            request = await self._decode(body)
            self.check_model(request)
            exchange.adapter = self.adapter_of(request)
            del body
            await while_connected(exchange, self.answer(exchange, request, arrived))
        finally:
            exchange.release_body()

    async def _decode(self, body: bytes) -> Any:
        """A large one takes some hundredths of a second: one of them in each turn of the loop."""
        if len(body) < LARGE_BODY:
            return self._decode_now(body)
        async with self.state.decoding:
            await asyncio.sleep(0)
            return self._decode_now(body)

    def _decode_now(self, body: bytes) -> Any:
        state = self.state
        return decode(self.decoder, body, state.ignored_fields, strict=state.args.strict_requests)

    def check_model(self, request: Any) -> None:
        """ApiError 404 where the request names a model that isn't served."""
        self.state.check_model(request.model)

    def adapter_of(self, request: Any) -> int:
        """The number of the adapter that the request's model is; 0: none."""
        return self.state.adapter_of(getattr(request, "model", None))

    async def answer(self, exchange: Exchange, request: Any, arrived: float) -> None:
        """`arrived` is the time.perf_counter() of the request's arrival."""
        raise NotImplementedError

    def generation(
        self, exchange: Exchange, request: GenerationRequest, text: TextFrontend, arrived: float
    ) -> Generation:
        """What a request generates, with the place among others that its client and fields give."""
        state = self.state
        return Generation(
            state.client,
            text,
            state.metrics,
            arrived=arrived,
            prefix_salt=state.prefix_salt(request.cache_salt, exchange.api_key),
            standing=self.standing(exchange, request),
            session=checks.session(request, exchange.request_headers),
            adapter=exchange.adapter,
        )

    def standing(self, exchange: Exchange, request: checks.Sent) -> Standing:
        """Whose turn a request of this client's waits for."""
        num_shares = max(1, len(self.state.args.api_key))
        return checks.standing(request, exchange.api_key or 0, num_shares=num_shares)
