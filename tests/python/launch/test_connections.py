"""Connections that offer HTTP/2, stay idle, stop reading or never finish: the end comes all the
same.
"""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.python.launch.servers import DEADLINE, ServerProcess, Stream, make_model


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(make_model(tmp_path / "tiny"), tmp_path / "tmp", "--drain-timeout", "1")
    yield process
    if process.process.poll() is None:
        process.end()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)


def read_response(connection: socket.socket) -> bytes:
    data = b""
    while b'"}' not in data:
        received = connection.recv(4096)
        assert received, data
        data += received
    return data


def test_an_offer_of_http_2_is_ignored(server: ServerProcess) -> None:
    with connect(server.wait_ready()) as connection:
        connection.sendall(
            b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
            b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
        )
        assert read_response(connection).startswith(b"HTTP/1.1 200")


def test_http_2_without_asking_is_refused(server: ServerProcess) -> None:
    port = server.wait_ready()
    with connect(port) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 ")
    assert Stream(port, [1], 3).join().endswith("[DONE]")


def test_the_end_waits_for_no_connection(server: ServerProcess) -> None:
    port = server.wait_ready()
    idle, half, deaf = connect(port), connect(port), connect(port)
    idle.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    read_response(idle)
    half.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{"
    )
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    body = json.dumps({"prompt": [1], "max_tokens": 90_000, "stream": True}).encode()
    deaf.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    assert deaf.recv(10).startswith(b"HTTP/1.1 2")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert "Traceback" not in server.output
    for connection in (idle, half, deaf):
        connection.close()
