"""What a client sees and says of the prefix cache: cached tokens in usage, salts, keys."""

from __future__ import annotations

import json

import pytest

from minisgl.config import OptionError, ServerArgs
from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import Output
from tests.python.server.byte_tokenizer import END
from tests.python.server.conftest import Server, StartServer, events
from tests.python.server.fake_engine import FakeClient, reply


async def found_some(client: FakeClient, stream: TokenStream) -> None:
    """Finds all of the prompt but a token, and one token less for each request before."""
    cached = len(stream.request.prompt) - 1 - stream.id
    stream.deliver(Output(stream.id, [65], num_cached=cached))
    stream.deliver(Output(stream.id, [END], "stop"))


async def test_usage_says_what_was_cached(start_server: StartServer) -> None:
    async with start_server(found_some) as server:
        answer = (await server.chat("hello", n=3)).json()
        prompt = len(server.engine.submitted[0].request.prompt)
        # Each prompt counts once, as its first choice found it.
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": prompt - 1}
        assert answer["usage"]["prompt_tokens"] == prompt
        answer = (await server.complete(["abcdefgh", "abcdefghij"])).json()
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 8 - 4 + 10 - 5}


async def test_usage_of_a_stream_says_it(start_server: StartServer) -> None:
    async with start_server(found_some) as server:
        options = {"include_usage": True, "continuous_usage_stats": True}
        answer = await server.chat("hello", stream=True, stream_options=options)
        prompt = len(server.engine.submitted[0].request.prompt)
        *chunks, _ = events(answer.text)
        for chunk in chunks:
            usage = json.loads(chunk)["usage"]
            assert usage["prompt_tokens_details"] == {"cached_tokens": prompt - 1}


def salts(server: Server) -> list[bytes | None]:
    return [stream.request.prefix_salt for stream in server.engine.submitted]


async def test_salts_keep_requests_apart(server: Server) -> None:
    for path in (server.chat, server.complete):
        for fields in ({}, {"cache_salt": "a"}, {"cache_salt": "b"}, {"cache_salt": None}):
            assert (await path("hi", **fields)).status_code == 200
    none, a, b, also_none = salts(server)[:4]
    assert none is also_none is None
    assert a is not None
    assert b is not None
    assert len({a, b}) == 2
    assert {len(a), len(b)} == {16}
    assert salts(server)[4:] == [none, a, b, also_none]
    assert (await server.chat("hi", cache_salt="x" * 1025)).status_code == 400
    assert (await server.chat("hi", cache_salt=5)).status_code == 400
    (await server.chat("hi", cache_salt="a", n=2)).raise_for_status()
    assert salts(server)[-2:] == [a, a]


async def test_keys_keep_clients_apart_where_that_is_asked_for(start_server: StartServer) -> None:
    for apart in (False, True):
        async with start_server(reply("x"), api_key=("one", "two"), cache_per_key=apart) as server:
            for key, fields in (
                ("one", {}),
                ("two", {}),
                ("one", {"cache_salt": "a"}),
                ("two", {"cache_salt": "a"}),
            ):
                server.http.headers["authorization"] = f"Bearer {key}"
                (await server.chat("hi", **fields)).raise_for_status()
            assert len(set(salts(server))) == (4 if apart else 2)
            assert (None in salts(server)) != apart


def test_keys_can_keep_apart_only_where_there_are_some() -> None:
    with pytest.raises(OptionError, match="cache_per_key needs --api-key or --api-key-file, too"):
        ServerArgs(cache_per_key=True)
    ServerArgs(cache_per_key=True, api_key=("a",))
