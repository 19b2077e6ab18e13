"""Drafts that were tried for an answer stand in its usage, and a request can have none."""

from __future__ import annotations

from minisgl.engine.stream import TokenStream
from tests.python.server.conftest import StartServer
from tests.python.server.fake_engine import FakeClient, output


async def drafted(client: FakeClient, stream: TokenStream) -> None:
    last = output(stream, list(b"abc"), "length")
    last.drafts = (5, 2) if stream.request.params.speculate else (0, 0)
    stream.deliver(last)


async def test_usage_counts_drafts(start_server: StartServer) -> None:
    async with start_server(drafted) as server:
        usage = (await server.complete("ab", n=2)).json()["usage"]
        assert usage["completion_tokens_details"] == {
            "accepted_prediction_tokens": 4,
            "rejected_prediction_tokens": 6,
        }
        usage = (await server.complete("ab", speculate=False)).json()["usage"]
        assert "completion_tokens_details" not in usage
