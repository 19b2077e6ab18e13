"""Pages of Ollama's API: what is served, and what is refused."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from minisgl.text.formats import AnswerFormats
from tests.python.server.byte_tokenizer import TEMPLATE
from tests.python.server.conftest import MODEL, Server, StartServer
from tests.python.server.fake_engine import reply

NAMES = [MODEL + ":latest", "alias:latest"]


async def test_tags_and_ps(server: Server) -> None:
    tags = (await server.http.get("/api/tags")).json()["models"]
    assert [model["name"] for model in tags] == [model["model"] for model in tags] == NAMES
    assert len(tags[0]["digest"]) == 64
    created = datetime.fromtimestamp(server.state.created, timezone.utc)
    assert datetime.fromisoformat(tags[0]["modified_at"].replace("Z", "+00:00")) == created
    loaded = (await server.http.get("/api/ps")).json()["models"]
    assert [model["name"] for model in loaded] == NAMES
    assert loaded[0]["context_length"] == 256
    server.engine.state = "starting"
    assert (await server.http.get("/api/ps")).json() == {"models": []}
    tags = (await server.http.get("/api/tags")).json()["models"]
    assert [model["name"] for model in tags] == NAMES
    assert (await server.http.post("/api/show", json={"model": MODEL})).status_code == 503


async def test_unknown_paths_have_its_errors(server: Server) -> None:
    for path in ("/api", "/api/", "/api/blobs/sha256:a", "/api/chat/x"):
        answer = await server.http.post(path)
        sentence = f"Unknown request URL: POST {path.rstrip('/')}."
        assert (answer.status_code, answer.json()) == (404, {"error": sentence})


async def test_show(start_server: StartServer) -> None:
    defaults = {"temperature": 0.6, "repetition_penalty": 1.1}
    async with start_server(
        reply("Hello"), formats=AnswerFormats("hermes", "qwen3"), sampling_defaults=defaults
    ) as server:
        for body in ({"model": MODEL}, {"name": "alias:latest", "verbose": True}):
            shown = (await server.http.post("/api/show", json=body)).json()
            assert shown["capabilities"] == ["completion", "tools", "thinking"]
            assert shown["template"] == TEMPLATE
            assert shown["parameters"] == "repeat_penalty 1.1\ntemperature 0.6"
            family = shown["details"]["family"]
            assert shown["model_info"]["general.architecture"] == family
            assert shown["model_info"][f"{family}.context_length"] == 256


async def test_pages_that_need_no_key(start_server: StartServer) -> None:
    async with start_server(api_key=("key",)) as server:
        for method in ("GET", "HEAD"):
            assert (await server.http.request(method, "/")).status_code == 200
        version = (await server.http.get("/api/version")).json()["version"]
        assert [int(part) for part in version.split(".")] >= [0, 12, 0]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/pull"),
        ("POST", "/api/push"),
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("DELETE", "/api/delete"),
    ],
)
async def test_refusals(server: Server, method: str, path: str) -> None:
    answer = await server.http.request(method, path, json={"model": MODEL})
    assert answer.status_code == 400
    assert path in answer.json()["error"]
    assert "operator" in answer.json()["error"]
