"""HTTP itself: routes, methods, keys, framing, bodies that are too large, too slow or not JSON."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from minisgl.server import http1
from tests.python.server.conftest import MODEL, Server, StartServer, events
from tests.python.server.fake_engine import endless
from tests.python.waiting import PATIENCE, until

BODY = json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode()


async def raw(server: Server, data: bytes) -> bytes:
    """Everything that the server says to `data` until it closes the connection."""
    reader, writer = await server.connect()
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    return answer


def error_of(answer: bytes) -> dict[str, str | None]:
    error: dict[str, str | None] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return error


async def test_unknown_route(server: Server) -> None:
    for path in ("/v1", "/apis", "/v2/chat/completions", "/health//", "/%00"):
        answer = await server.http.post(path, content=BODY)
        assert answer.status_code == 404, path
        assert answer.json()["error"]["code"] == "unknown_url"
        assert "There is" not in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/models", "/v1/models"),
        ("/v1/v1/messages", "/v1/messages"),
        ("/v1/api/chat/", "/api/chat"),
    ],
)
async def test_a_base_url_with_or_without_v1(server: Server, path: str, known: str) -> None:
    answer = await server.http.post(path, content=BODY)
    assert answer.status_code == 404
    assert f"There is {known}: " in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", {"POST"}),
        ("DELETE", "/v1/completions", {"POST"}),
        ("OPTIONS", "/v1/completions", {"POST"}),
        ("HEAD", "/tokenize", {"POST"}),
        ("POST", "/health", {"GET", "HEAD"}),
        ("PUT", "/v1/models", {"GET", "HEAD"}),
    ],
)
async def test_wrong_method(server: Server, method: str, path: str, allowed: set[str]) -> None:
    answer = await server.http.request(method, path)
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == allowed
    if method != "HEAD":
        assert answer.json()["error"]["code"] == "method_not_allowed"


async def test_unknown_model(server: Server) -> None:
    answer = await server.chat(model="gpt-4")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == "model_not_found"
    assert error["message"] == f"The model 'gpt-4' does not exist. This server has {MODEL!r}."
    assert (await server.http.get("/v1/models/gpt-4")).status_code == 404
    assert (await server.chat(model=MODEL)).status_code == 200
    assert (await server.http.get(f"/v1/models/{MODEL}")).json()["id"] == MODEL


async def test_api_key(start_server: StartServer) -> None:
    async with start_server(api_key=("other", "schlüssel")) as server:
        key = "schlüssel".encode()
        for header in (b"", b"schl", key, b"Bearer", b"Bearer x", b"Basic " + key, b"\xff"):
            headers = {b"authorization": header} if header else {}
            for method, path in (
                ("GET", "/v1/models"),
                ("GET", f"/v1/models/{MODEL}"),
                ("POST", "/v1/chat/completions"),
                ("POST", "/v1/completions"),
                ("POST", "/tokenize"),
                ("POST", "/detokenize"),
                ("POST", "/v1/chat%2Fcompletions"),
            ):
                answer = await server.http.request(method, path, headers=headers)
                assert answer.status_code == 401, (path, header)
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
        for header in (b"Bearer " + key, b"bearer  " + key):
            answer = await server.http.get("/v1/models", headers={b"authorization": header})
            assert answer.status_code == 200
        for path in ("/health", "/ready", "/metrics", "/version"):
            assert (await server.http.get(path)).status_code == 200


async def test_content_type(server: Server) -> None:
    for kind, status in (
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/jsonp", 415),
    ):
        answer = await server.http.post(
            "/v1/chat/completions", content=BODY, headers={"content-type": kind}
        )
        assert answer.status_code == status, kind
    answer = await server.http.post("/v1/chat/completions", content=BODY)
    assert answer.status_code == 200
    headers = {"content-encoding": "gzip"}
    answer = await server.http.post("/v1/chat/completions", content=BODY, headers=headers)
    assert answer.status_code == 415


async def test_two_lengths(server: Server) -> None:
    answer = await raw(
        server,
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("pause", [0, 0.02])
async def test_empty_lines_before_a_request(start_server: StartServer, pause: float) -> None:
    """RFC 9112, 2.2. They come whole or in halves, on a new connection or after a body."""
    post = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    post += b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    get = b"GET /version HTTP/1.1\r\nHost: a\r\n"
    pieces = [b"\r", b"\n", b"\r\n", post, b"\r", b"\n", get, b"\r\n", b"\n\r\n", post]
    pieces += [b"\r\n", get + b"Connection: close\r\n\r\n"]
    async with start_server() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause)
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200"] * 4
        writer.close()
        answer = await raw(server, b"\r\n" * (http1.EMPTY_LINES + 1) + get + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 400")
        answer = await raw(server, b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400")


async def test_http_2_is_not_spoken(server: Server) -> None:
    answer = await raw(server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 505")
    answer = await raw(
        server,
        b"GET /version HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 200")


async def test_a_head_that_is_too_large(server: Server) -> None:
    head = b"GET /version HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: "
    for end in (b"", b"\r\n\r\n"):  # whether or not all of it comes at once
        answer = await raw(server, head + b"x" * 20_000 + end)
        assert answer.startswith(b"HTTP/1.1 431")
        assert "(limit 16384 bytes)" in str(error_of(answer)["message"])
    assert (await raw(server, head + b"x" * 16_000 + b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_a_body_that_says_it_is_too_large(start_server: StartServer) -> None:
    async with start_server(max_body_bytes=1024) as server:
        answer = await raw(
            server,
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n{",
        )
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in answer.lower()
        assert "1024" in str(error_of(answer)["message"])
        for length in (b"99999999999999999999999999", b"-1", b"1e3", b"+5"):
            answer = await raw(
                server,
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: "
                + length
                + b"\r\n\r\n{}",
            )
            assert answer[:12] in (b"HTTP/1.1 413", b"HTTP/1.1 400")


async def test_a_body_that_never_ends(start_server: StartServer) -> None:
    async with start_server(max_body_bytes=2**20) as server:
        reader, writer = await server.connect()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        )

        async def send() -> None:
            while True:
                writer.write(b"10000\r\n" + b"[" * 65536 + b"\r\n")
                await writer.drain()

        sending = asyncio.create_task(send())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        assert head.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in head.lower()
        assert b"request_too_large" in await asyncio.wait_for(reader.readuntil(b"}}"), PATIENCE)
        with pytest.raises(ConnectionError):  # the server reads no more
            await asyncio.wait_for(sending, PATIENCE)
        assert (await server.chat()).status_code == 200
        writer.close()


async def test_bodies_that_are_too_large_together(start_server: StartServer) -> None:
    async with start_server(max_body_bytes=2**20, max_all_bodies_bytes=2**20) as server:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        head += b"Content-Length: 1000000\r\n\r\n"
        _, patient = await server.connect()
        patient.write(head + b"[" * 900_000)
        bodies = server.state.bodies
        await until(lambda: bodies.used >= 900_000)
        answer = await raw(server, head + b"[" * 900_000)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after" in answer.lower()
        assert error_of(answer)["code"] == "overloaded"
        assert (await server.chat()).status_code == 200  # a small one finds room
        patient.close()
        await until(lambda: not bodies.used)
        assert b"invalid_json" in await raw(server, head + b"x" * 1_000_000)


async def test_a_slow_body(start_server: StartServer) -> None:
    async with start_server(body_timeout=0.3) as server:
        reader, writer = await server.connect()
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{")

        async def drip() -> None:
            while True:
                await asyncio.sleep(0.05)
                writer.write(b" ")

        dripping = asyncio.create_task(drip())
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
        dripping.cancel()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 408")
        assert error_of(answer)["code"] == "timeout"


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/v1/models", "/v1/completions"])
async def test_a_body_that_nobody_reads(start_server: StartServer, path: str) -> None:
    """Many small chunks fill the server's queue; the answer and the end of the connection come
    anyway.
    """
    async with start_server(max_body_bytes=1024, api_key=("k",)) as server:
        reader, writer = await server.connect()
        writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\n".encode())
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 5000)
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
        assert answer.startswith(b"HTTP/1.1 ")
        assert b"connection: close" in answer.lower()
        writer.close()


async def test_a_connection_is_used_again(server: Server) -> None:
    reader, writer = await server.connect()
    for status, path in ((200, b"/v1/chat/completions"), (404, b"/x"), (405, b"/health")) * 2:
        writer.write(
            b"POST " + path + b" HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(BODY)
        )
        writer.write(BODY)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        assert head.startswith(b"HTTP/1.1 %d" % status)
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
    writer.close()


async def test_a_stream_over_http_1_0_has_no_chunks(server: Server) -> None:
    body = b'{"prompt": "hi", "stream": true}'
    head = b"POST /v1/completions HTTP/1.0\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    head, _, content = (await raw(server, head + body)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"chunked" not in head.lower()
    *chunks, done = events(content.decode())
    assert "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks) == "Hello"
    assert done == "[DONE]"


async def test_what_is_not_http(server: Server) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00" * 50 + b"\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ):
        answer = await raw(server, data)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    answer = await raw(server, b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000)
    assert answer.startswith(b"HTTP/1.1 4")
    assert (await server.http.get("/health")).status_code == 200


async def test_an_offered_web_socket_is_ignored(server: Server) -> None:
    answer = await raw(
        server,
        b"GET /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 405 ")


async def test_queue_full(start_server: StartServer) -> None:
    async with start_server(endless(), max_live=2) as server:
        running = [asyncio.create_task(server.complete(max_tokens=200)) for _ in range(2)]
        await until(lambda: server.engine.num_live == 2)
        for _ in range(2):
            answer = await server.complete(stream=True)
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) > 0
            error = answer.json()["error"]
            assert error["code"] == "queue_full"
            assert error["message"] == (
                "The request queue is full: 2 requests are live. Try again later."
            )
        for task in running:
            assert (await task).status_code == 200
        assert (await server.complete(max_tokens=1)).status_code == 200


async def test_what_never_fits_is_refused_whatever_else_is_live(start_server: StartServer) -> None:
    async with start_server(endless(), max_live=3) as server:
        for _ in range(2):  # nothing is live, then all that may be
            for answer in (
                await server.chat(n=4, max_tokens=1, temperature=1),
                await server.complete(prompt=["a", "b"], n=2, max_tokens=1, temperature=1),
            ):
                assert answer.status_code == 400
                assert answer.json()["error"]["message"] == (
                    "This request can never be served: 4 of 3."
                )
            assert server.engine.num_live in (0, 3)
            running = [asyncio.create_task(server.complete(max_tokens=500)) for _ in range(3)]
            await until(lambda: server.engine.num_live == 3)
            assert (await server.chat(n=3, temperature=1)).status_code == 429
        for task in running:
            task.cancel()


async def test_a_fault_of_ours_is_not_explained_to_the_client(server: Server) -> None:
    def broken(*_: object) -> None:
        raise KeyError("secret")

    server.engine.submit = broken  # type: ignore[assignment, method-assign]
    for stream in (False, True):
        answer = await server.chat(stream=stream)
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert answer.headers["x-request-id"] in answer.json()["error"]["message"]


async def test_a_slash_at_the_end(server: Server) -> None:
    assert (await server.http.get("/v1/models/")).json()["object"] == "list"
    assert (await server.http.get("/metrics/")).status_code == 200
    assert (await server.http.post("/v1/chat/completions/", content=BODY)).status_code == 200


@pytest.mark.parametrize(
    "target", [b"http://elsewhere:81/version", b"HTTP://a/version?x=1", b"https://a/version/"]
)
async def test_the_absolute_form_of_a_target(server: Server, target: bytes) -> None:
    answer = await raw(
        server, b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"version"' in answer


async def test_a_target_without_a_path(server: Server) -> None:
    answer = await raw(server, b"GET http://a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"minisgl is running")  # what stands at /


async def test_root_path(start_server: StartServer) -> None:
    async with start_server(root_path="/some/model") as server:
        for prefix in ("", "/some/model"):
            assert (await server.http.get(prefix + "/v1/models")).status_code == 200
            assert (await server.http.get(prefix + "/v1/models/" + MODEL)).json()["id"] == MODEL
            assert (await server.http.post(prefix + "/tokenize/", json={"prompt": "a"})).is_success
        for path in ("/some/modelv1/models", "/some/v1/models", "/some/model/some/model/version"):
            assert (await server.http.get(path)).status_code == 404


async def test_status_lines_have_a_reason(server: Server) -> None:
    for line, reason in (
        (b"GET /health", b"200 OK"),
        (b"GET /nowhere", b"404 Not Found"),
        (b"PUT /health", b"405 Method Not Allowed"),
        (b"garbage", b"400 Bad Request"),
    ):
        answer = await raw(server, line + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 " + reason + b"\r\n")


@pytest.mark.parametrize(
    ("key", "length", "status"), [("k", 1_000_000, b"413"), ("x", 10, b"401"), ("k", 14, b"100")]
)
async def test_a_body_that_waits_to_be_asked_for(
    start_server: StartServer, key: str, length: int, status: bytes
) -> None:
    async with start_server(max_body_bytes=1024, api_key=("k",)) as server:
        reader, writer = await server.connect()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
            b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n" % (key.encode(), length)
        )
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        assert head.startswith(b"HTTP/1.1 " + status)
        if status == b"100":
            writer.write(b'{"prompt":"a"}')
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
            assert head.startswith(b"HTTP/1.1 200 OK")
        else:
            assert b"connection: close" in head.lower()
        writer.close()


async def test_request_ids(server: Server) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        prefix = "chatcmpl" if "chat" in path else "cmpl"
        body = {"prompt": "a"} if prefix == "cmpl" else json.loads(BODY)
        for given in ("my-id_1/2:3", "x" * 128):
            answer = await server.http.post(path, json=body, headers={"X-Request-Id": given})
            assert answer.headers["x-request-id"] == given
            assert answer.json()["id"] == f"{prefix}-{given}"
        for given in ("", "x" * 129, "a b", "a\tb", "é"):
            headers = {"X-Request-Id": given.encode()}
            answer = await server.http.post(path, json=body, headers=headers)  # type: ignore[arg-type]
            own = answer.headers["x-request-id"]
            assert len(own) == 32
            assert answer.json()["id"] == f"{prefix}-{own}"


async def test_a_byte_order_mark(server: Server) -> None:
    answer = await server.http.post("/v1/chat/completions", content=b"\xef\xbb\xbf" + BODY)
    assert answer.status_code == 200
    answer = await server.http.post("/v1/chat/completions", content=b"\xef\xbb\xbf" * 2 + BODY)
    assert answer.status_code == 400


async def test_when_to_come_again(start_server: StartServer) -> None:
    async with start_server(endless(), max_live=0) as server:
        server.engine.retry_after = 37
        answer = await server.complete()
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "37")
