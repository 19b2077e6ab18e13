"""Random requests to a running server: whatever comes in, the answer is well-formed HTTP with a
body of the documented shape, never a fault of the server's, and other clients notice nothing.

MINISGL_HTTP_EXAMPLES sets how many of each kind are tried.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.python.launch.servers import DEADLINE
from tests.python.running.conftest import RunningServer
from tests.python.running.measures import until_idle

OLLAMA_PATHS = ("/api/chat", "/api/generate", "/api/show", "/api/embed")
PATHS = (
    *("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"),
    *("/v1/embeddings", "/v1/score", *OLLAMA_PATHS),
)
EXAMPLES = settings(
    max_examples=int(os.environ.get("MINISGL_HTTP_EXAMPLES", "200")),
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

numbers = (
    st.integers(-3, 300)
    | st.sampled_from([2**31 - 1, 2**31, 2**63, 2**64, -(2**63), 2**70, 1e308, -0.0])
    | st.floats(allow_nan=False, allow_infinity=False)
)
# Lengths of answers: none that means "as many as fit", which would take long.
lengths = st.integers(0, 20) | st.sampled_from([-2, 16.0, 1.5, 1e308, 2**70, -0.0, "8", True])
texts = st.text(max_size=20)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
parts = st.fixed_dictionaries(
    {"type": st.just("text") | texts}, optional={"text": texts | values, "image_url": values}
)
calls = st.fixed_dictionaries(
    {
        "function": st.fixed_dictionaries(
            {"name": texts, "arguments": texts | st.just("{}") | values}
        )
    },
    optional={"colour": values},
)
messages = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])
        | texts
    },
    optional={
        "content": texts | st.lists(parts, max_size=3) | values,
        "name": texts,
        "tool_calls": st.lists(calls, max_size=2) | values,
        "function_call": values,
        "reasoning": texts,
        "colour": values,
        "tool_call_id": texts,
    },
)
ids = st.integers(0, 257) | numbers
fields: dict[str, Any] = {
    "prompt": texts | st.lists(texts | ids, max_size=5) | st.lists(st.lists(ids, max_size=5)),
    "input": texts | st.lists(texts | ids, max_size=5) | st.lists(st.lists(ids, max_size=5)),
    "text_1": texts | st.lists(texts, max_size=3) | values,
    "text_2": texts | st.lists(texts, max_size=3) | values,
    "dimensions": st.integers(0, 70) | numbers,
    "encoding_format": st.sampled_from(["float", "base64"]) | values,
    "pooling": st.sampled_from(["last", "mean"]) | values,
    "normalize": st.booleans() | values,
    "truncate_prompt_tokens": st.integers(-1, 5) | numbers,
    "messages": st.lists(messages, max_size=4) | values,
    "tokens": st.lists(ids, max_size=9) | values,
    "max_tokens": lengths,
    "max_completion_tokens": lengths,
    "min_tokens": st.integers(0, 5) | numbers,
    "n": st.integers(1, 3) | numbers,
    "best_of": st.integers(1, 3) | numbers,
    "temperature": st.floats(0, 2) | values,
    "top_p": st.floats(0, 1) | values,
    "top_k": st.integers(-1, 300) | values,
    "min_p": st.floats(0, 1) | values,
    "repetition_penalty": st.floats(0, 100) | values,
    "presence_penalty": st.floats(-2, 2) | values,
    "frequency_penalty": st.floats(-2, 2) | values,
    "seed": st.integers(-(2**70), 2**70) | values,
    "logit_bias": st.dictionaries(st.integers(0, 257).map(str) | texts, st.floats(-100, 100))
    | values,
    "stop": texts | st.lists(texts, max_size=4) | values,
    "stop_token_ids": st.lists(ids, max_size=4) | values,
    "logprobs": st.booleans() | st.integers(0, 5) | values,
    "top_logprobs": st.integers(0, 20) | values,
    "echo": st.booleans() | values,
    "ignore_eos": st.booleans() | values,
    "skip_special_tokens": st.booleans() | values,
    "add_special_tokens": st.booleans() | values,
    "return_token_strs": st.booleans() | values,
    "include_stop_str_in_output": st.booleans() | values,
    "stream": st.booleans() | values,
    "stream_options": st.dictionaries(
        st.sampled_from(["include_usage", "continuous_usage_stats"]), st.booleans()
    )
    | values,
    "tools": values,
    "tool_choice": st.sampled_from(["none", "auto", "required"]) | values,
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]) | values,
    "structured_outputs": st.dictionaries(
        st.sampled_from(["json", "regex", "choice", "grammar"]), texts | values, max_size=2
    )
    | values,
    "guided_regex": st.sampled_from(["[ab]{2}", "(", "x*"]) | texts,
    "guided_choice": st.lists(texts, max_size=3) | values,
    "guided_json": values,
    "chat_template_kwargs": st.dictionaries(texts, values, max_size=3) | values,
    "user": texts,
    "metadata": values,
    "use_beam_search": st.just(False) | values,
    "priority": values,
    "continue_final_message": st.booleans() | values,
    "add_generation_prompt": st.booleans() | values,
    "reasoning_effort": texts | values,
    "documents": values,
    "colour": values,
}
options = st.fixed_dictionaries(
    {"num_predict": st.integers(1, 20) | st.sampled_from([-3, 16.0, 1.5, 1e308, "8", True])},
    optional={
        **{name: fields[name] for name in ("temperature", "top_p", "top_k", "min_p", "seed")},
        **{name: fields[name] for name in ("stop", "presence_penalty", "frequency_penalty")},
        "repeat_penalty": fields["repetition_penalty"],
        **{name: values for name in ("repeat_last_n", "num_ctx", "mirostat", "num_gpu", "colour")},
    },
)
ollama_fields: dict[str, Any] = {
    **{name: fields[name] for name in ("messages", "stream", "tools", "logprobs", "colour")},
    "top_logprobs": fields["top_logprobs"],
    "prompt": texts | values,
    "system": texts | values,
    "suffix": texts | values,
    "options": options,
    "format": st.sampled_from(["json", "", {"type": "integer"}]) | values,
    "think": st.booleans() | st.sampled_from(["low", "high"]) | values,
    "keep_alive": st.sampled_from(["5m", "-1", "1.5h", 0]) | values,
    "raw": st.booleans() | values,
    "images": values,
    "context": values,
    "truncate": values,
    "name": texts | values,
    "input": texts | st.lists(texts, max_size=5) | values,
    "dimensions": st.integers(0, 20) | values,
}


def _bodies(chosen_of: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    # Few fields at a time, so that many requests get as far as the engine.
    return st.lists(st.sampled_from(sorted(chosen_of)), max_size=5, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries(
            {name: chosen_of[name] for name in chosen}, optional={"model": texts}
        )
    )


requests = st.sampled_from(PATHS).flatmap(
    lambda path: st.tuples(
        st.just(path), _bodies(ollama_fields if path in OLLAMA_PATHS else fields)
    )
)
starts: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
    "/v1/completions": {"prompt": [5, 6], "max_tokens": 3},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [5, 6]},
    "/api/chat": {"messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 3}},
    "/api/generate": {"prompt": "hi", "options": {"num_predict": 3}},
    "/api/show": {},
    "/api/embed": {"input": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/score": {"text_1": "hi", "text_2": ["you", "hi"]},
}


@pytest.fixture(scope="module")
def others(server: RunningServer) -> Any:
    """Bystanders for all examples of a test, and an idle server after them."""
    with server.others.unharmed():
        yield
    until_idle(server.port)


def ask(port: int, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request(method, path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.headers["content-type"], response.read()
    finally:
        connection.close()


def check_ollama(status: int, kind: str, body: bytes) -> None:
    if kind == "application/x-ndjson":
        assert status == 200
        assert body.endswith(b"\n")
        lines = [json.loads(line) for line in body.decode().splitlines()]
        assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
        return
    assert kind == "application/json"
    answer = json.loads(body)
    if status != 200:
        assert status in (400, 404, 413), (status, body)
        assert set(answer) == {"error"}
        assert 0 < len(answer["error"]) < 2000


def check(status: int, kind: str, body: bytes) -> None:
    if status == 200 and kind.startswith("text/event-stream"):
        text = body.decode()
        assert text.endswith("data: [DONE]\n\n"), text[-300:]
        for event in text.split("\n\n")[:-2]:
            assert "choices" in json.loads(event.removeprefix("data: "))
        return
    assert kind == "application/json"
    answer = json.loads(body)
    if status != 200:
        assert status in (400, 404, 413), (status, body)
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert 0 < len(answer["error"]["message"]) < 2000


def check_of(path: str) -> Callable[[int, str, bytes], None]:
    return check_ollama if path in OLLAMA_PATHS else check


@EXAMPLES
@given(request=requests)
def test_fields(server: RunningServer, others: None, request: tuple[str, dict[str, Any]]) -> None:
    path, body = request
    content = json.dumps({**starts[path], **body}).encode()
    check_of(path)(*ask(server.port, "POST", path, content))


@EXAMPLES
@given(path=st.sampled_from(PATHS), data=st.data())
def test_damaged_bodies(server: RunningServer, others: None, path: str, data: Any) -> None:
    content = bytearray(json.dumps(starts[path]).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        content = content or bytearray(b"{")
    check_of(path)(*ask(server.port, "POST", path, bytes(content)))


@EXAMPLES
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "FOO"]),
    path=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
)
def test_routes(server: RunningServer, others: None, method: str, path: str) -> None:
    status, kind, body = ask(server.port, method, "/" + path, b"{}")
    assert status in (200, 400, 404, 405), (status, body)
    if status >= 400 and method != "HEAD" and kind is not None:
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


lines = st.sampled_from(
    [
        *(b"GET /health HTTP/1.1", b"POST /v1/completions HTTP/1.1", b"GET / HTTP/1.0"),
        *(b"Host: x", b"Content-Length: 5", b"Content-Length: 0", b"Transfer-Encoding: chunked"),
        *(b"Connection: close", b"Connection: Upgrade", b"Upgrade: websocket", b"Upgrade: h2c"),
        *(b"Expect: 100-continue", b"Content-Type: application/json", b"", b"", b"5", b"{}", b"0"),
    ]
) | st.binary(max_size=30)


@EXAMPLES
@given(data=st.lists(lines, max_size=12).map(b"\r\n".join))
def test_bytes_on_a_socket(server: RunningServer, others: None, data: bytes) -> None:
    """Sent, then the sending side closes: the server answers in HTTP, or not at all, and closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as connection:
        answer = b""
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                answer += part
        except ConnectionError:
            pass
    assert answer == b"" or answer.startswith(b"HTTP/1.1 "), answer
    assert not answer.startswith(b"HTTP/1.1 500"), answer
