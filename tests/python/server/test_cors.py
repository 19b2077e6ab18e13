"""Pages of other origins: nothing without --allowed-origins, with it what a browser asks for."""

from __future__ import annotations

import pytest

from tests.python.server.conftest import StartServer
from tests.python.server.fake_engine import reply

PAGE = "http://localhost:5173"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}


@pytest.mark.parametrize("origins", [("*",), ("https://example.org", PAGE)])
async def test_an_allowed_page(start_server: StartServer, origins: tuple[str, ...]) -> None:
    async with start_server(reply("Hello"), allowed_origins=origins, api_key=("k",)) as server:
        allowed = "*" if origins == ("*",) else PAGE
        answer = await server.http.options("/v1/chat/completions", headers=PREFLIGHT)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == allowed
        assert "POST" in answer.headers["access-control-allow-methods"]
        wanted = PREFLIGHT["access-control-request-headers"]
        assert answer.headers["access-control-allow-headers"] == wanted
        assert "access-control-allow-private-network" not in answer.headers
        private = {**PREFLIGHT, "access-control-request-private-network": "true"}
        answer = await server.http.options("/v1/chat/completions", headers=private)
        assert answer.headers["access-control-allow-private-network"] == "true"

        key = {"origin": PAGE, "authorization": "Bearer k"}
        for status, path, headers, body in (
            (200, "/v1/completions", key, {"prompt": "hi"}),
            (200, "/v1/completions", key, {"prompt": "hi", "stream": True}),
            (400, "/v1/completions", key, {}),
            (401, "/v1/completions", {"origin": PAGE}, {}),
            (404, "/nowhere", key, {}),
        ):
            answer = await server.http.post(path, headers=headers, json=body)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == allowed
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
            assert answer.headers.get("vary") == (None if allowed == "*" else "Origin")
        plain = await server.http.get("/health")
        assert "access-control-allow-origin" not in plain.headers


@pytest.mark.parametrize("origins", [(), ("https://example.org",)])
async def test_a_page_that_is_not_allowed(
    start_server: StartServer, origins: tuple[str, ...]
) -> None:
    async with start_server(reply("Hello"), allowed_origins=origins) as server:
        answer = await server.http.options("/v1/chat/completions", headers=PREFLIGHT)
        assert answer.status_code == 405
        assert not [name for name in answer.headers if name.startswith("access-control")]
        answer = await server.http.get("/v1/models", headers={"origin": PAGE})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        # A cache must not give one page's answer to another.
        assert answer.headers.get("vary") == ("Origin" if origins else None)


async def test_a_question_that_is_no_preflight(start_server: StartServer) -> None:
    async with start_server(reply("Hello"), allowed_origins=("*",)) as server:
        answer = await server.http.options("/v1/models", headers={"origin": PAGE})
        assert answer.status_code == 405
        assert answer.headers["access-control-allow-origin"] == "*"
