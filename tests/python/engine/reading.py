"""Streams, read to their ends."""

from __future__ import annotations

from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import Output


async def read(stream: TokenStream) -> tuple[list[int], Output]:
    """All tokens of a stream and its last output."""
    tokens: list[int] = []
    while True:
        output = await stream.next()
        tokens += output.token_ids
        if output.finish:
            return tokens, output
