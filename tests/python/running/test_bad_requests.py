"""Bad requests to a running server: each gets its answer, and other clients get all their
tokens.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.python.running.conftest import MAX_MODEL_LEN, RunningServer
from tests.python.server.bad_requests import BAD_REQUESTS, CHAT, COMPLETIONS, chat, content_of
from tests.python.server.ollama_bad_requests import OLLAMA_BAD_REQUESTS

JSON = {"content-type": "application/json"}


@pytest.fixture
def client(server: RunningServer) -> Any:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client:
        yield client


def code(answer: httpx.Response) -> str | None:
    found: str | None = answer.json()["error"]["code"]
    return found


def test_each_gets_400_and_its_reason(server: RunningServer, client: httpx.Client) -> None:
    wrong = {}
    with server.others.unharmed():
        for name, (path, body, param) in BAD_REQUESTS.items():
            answer = client.post(path, content=content_of(body), headers=JSON)
            error = answer.json().get("error", {})
            if answer.status_code != 400 or param not in (None, error["param"]):
                wrong[name] = (answer.status_code, answer.text[:200])
    assert wrong == {}


def test_ollamas_api_says_why_in_its_form(server: RunningServer, client: httpx.Client) -> None:
    wrong = {}
    with server.others.unharmed():
        for name, ((path, body), part) in OLLAMA_BAD_REQUESTS.items():
            answer = client.post(path, content=content_of(body), headers=JSON)
            error = answer.json().get("error")
            if answer.status_code != 400 or not isinstance(error, str) or part not in error:
                wrong[name] = (answer.status_code, answer.text[:200])
    assert wrong == {}


@pytest.mark.parametrize(
    ("length", "fields", "status"),
    [
        (MAX_MODEL_LEN - 1, {"max_tokens": 1}, 200),
        (MAX_MODEL_LEN - 1, {}, 200),  # a default is cut to what fits
        (MAX_MODEL_LEN - 1, {"max_tokens": 2}, 200),  # and so is what is wanted
        (MAX_MODEL_LEN, {"max_tokens": 0, "echo": True}, 200),
        (MAX_MODEL_LEN, {"max_tokens": 1}, 400),
        (MAX_MODEL_LEN, {}, 400),
        (MAX_MODEL_LEN + 1, {"max_tokens": 1}, 400),
        (MAX_MODEL_LEN - 100, {"max_tokens": 101}, 200),
        (MAX_MODEL_LEN - 100, {"max_tokens": -1}, 200),
        (MAX_MODEL_LEN, {"max_tokens": 2**31 - 1}, 400),
    ],
)
def test_lengths_at_the_limit(
    server: RunningServer, client: httpx.Client, length: int, fields: dict[str, Any], status: int
) -> None:
    with server.others.unharmed():
        answer = client.post(COMPLETIONS, json={"prompt": [5] * length, **fields})
    assert answer.status_code == status, answer.text
    if status == 400:
        assert code(answer) == "context_length_exceeded"
        assert str(MAX_MODEL_LEN) in answer.json()["error"]["message"]
    else:
        assert answer.json()["usage"]["prompt_tokens"] == length


def test_unknown_model_route_method_and_type(server: RunningServer, client: httpx.Client) -> None:
    with server.others.unharmed():
        for method, path, options, status, expected in (
            ("POST", CHAT, {"json": chat(model="gpt-4")}, 404, "model_not_found"),
            ("POST", COMPLETIONS, {"json": {"prompt": "a", "model": "a"}}, 404, "model_not_found"),
            ("GET", "/v1/models/gpt-4", {}, 404, "model_not_found"),
            ("POST", "/v1/edits", {"json": chat()}, 404, "unknown_url"),
            ("GET", "/../../etc/passwd", {}, 404, "unknown_url"),
            ("GET", CHAT, {}, 405, "method_not_allowed"),
            ("DELETE", "/v1/models", {}, 405, "method_not_allowed"),
            ("BREW", "/health", {}, 405, "method_not_allowed"),
            ("POST", CHAT, {"data": {"a": "b"}}, 415, "unsupported_media_type"),
        ):
            answer = client.request(method, path, **options)
            assert (answer.status_code, code(answer)) == (status, expected), (method, path)
