"""Clients of a running server that break the rules of HTTP or of decency; the others notice
nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import resource
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.python.launch.servers import DEADLINE, ServerProcess, get, until
from tests.python.running.bystanders import post
from tests.python.running.conftest import PROGRAM, RunningServer, StartServer
from tests.python.running.measures import HealthWatch, gauges, process_size, until_idle

MEGABYTE = 10**6


@pytest.fixture(scope="module")
def impatient(start_server: StartServer) -> RunningServer:
    """Gives slow clients half a second, and holds few requests."""
    return start_server(
        *("--body-timeout", "0.5", "--max-running", "4", "--max-waiting", "4"),
    )


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def request(path: str, **body: object) -> bytes:
    content = json.dumps(body).encode()
    return head(path, f"Content-Length: {len(content)}") + content


def everything(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            data += part
    return data


def send_all(connection: socket.socket, parts: Iterator[bytes]) -> None:
    """As much as the server takes."""
    with contextlib.suppress(ConnectionError):
        for part in parts:
            connection.sendall(part)


@pytest.mark.parametrize("framing", ["Content-Length: 1000000000", "Transfer-Encoding: chunked"])
def test_a_body_of_a_gigabyte(server: RunningServer, framing: str) -> None:
    before = process_size(server.process.process.pid).resident
    part = b"10000\r\n" + b"[" * 65536 + b"\r\n" if "chunked" in framing else b"[" * 65536
    with server.others.unharmed(), connect(server.port) as connection:
        connection.sendall(head("/v1/completions", framing))
        parts = itertools.repeat(part, 10**9 // len(part))
        sender = threading.Thread(target=send_all, args=(connection, parts))
        sender.start()
        answer = everything(connection)
        sender.join(DEADLINE)
    assert answer.startswith(b"HTTP/1.1 413"), answer[:200]
    assert b"request_too_large" in answer
    assert process_size(server.process.process.pid).resident < before + 100 * MEGABYTE


def test_a_body_that_never_ends(server: RunningServer) -> None:
    """Without a length, a chunk at a time, until the server has had enough."""
    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
    with server.others.unharmed(), connect(server.port) as connection:
        connection.sendall(head("/v1/chat/completions", "Transfer-Encoding: chunked"))
        sender = threading.Thread(
            target=send_all, args=(connection, itertools.repeat(chunk)), daemon=True
        )
        sender.start()
        assert everything(connection).startswith(b"HTTP/1.1 413")
        sender.join(DEADLINE)
        assert not sender.is_alive()


def test_two_lengths(server: RunningServer) -> None:
    with server.others.unharmed(), connect(server.port) as connection:
        connection.sendall(
            head("/v1/completions", "Content-Length: 5", "Transfer-Encoding: chunked")
            + b"0\r\n\r\n"
            + head("/v1/models", method="GET")
        )
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1 ") == 1  # what was smuggled is no request


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a" * 100_000,
        head("/health", *(f"X-{k}: {'y' * 100}" for k in range(2000)), method="GET"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
        b"\x00" * 1000 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        head("/v1/completions", "Content-Length: -1"),
        head("/v1/completions", "Transfer-Encoding: gzip"),
        head("/v1/completions", "Transfer-Encoding: chunked") + b"zz\r\n",
    ],
    ids=range(10),
)
def test_what_is_not_http(impatient: RunningServer, data: bytes) -> None:
    with impatient.others.unharmed(), connect(impatient.port) as connection:
        connection.sendall(data)
        answer = everything(connection)
    assert answer[:10] in (b"HTTP/1.1 4", b"HTTP/1.1 5"), answer[:200]


@pytest.mark.parametrize("first", [b"G", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-A"])
def test_a_slow_head(impatient: RunningServer, first: bytes) -> None:
    with impatient.others.unharmed(), connect(impatient.port) as connection:
        connection.sendall(first)
        dripping = drip(connection, b"E")
        answer = everything(connection)
        dripping.join(DEADLINE)
    assert answer.startswith(b"HTTP/1.1 408"), answer
    assert b"connection: close" in answer.lower()


def test_a_slow_head_after_a_quick_one(impatient: RunningServer) -> None:
    with impatient.others.unharmed(), connect(impatient.port) as connection:
        connection.sendall(head("/health", method="GET"))
        time.sleep(1)  # idle for longer than a head may take is no fault
        connection.sendall(head("/health", method="GET") + b"GET /he")
        answer = everything(connection)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert answer.count(b"HTTP/1.1 408") == 1


def test_a_slow_body(impatient: RunningServer) -> None:
    with impatient.others.unharmed(), connect(impatient.port) as connection:
        connection.sendall(head("/v1/completions", "Content-Length: 1000") + b"{")
        dripping = drip(connection, b" ")
        answer = everything(connection)
        dripping.join(DEADLINE)
    assert answer.startswith(b"HTTP/1.1 408"), answer
    assert b'"timeout"' in answer


def drip(connection: socket.socket, byte: bytes) -> threading.Thread:
    """Sends a byte now and then, until the other end has closed."""

    def run() -> None:
        with contextlib.suppress(OSError):
            while True:
                time.sleep(0.05)
                connection.sendall(byte)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_a_client_that_never_reads(server: RunningServer) -> None:
    """What it doesn't take costs the server a bounded amount, and ends with its connection."""
    before = process_size(server.process.process.pid).resident
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", server.port))
    body = {"n": 8, "max_tokens": 4000, "ignore_eos": True, "logprobs": 5, "stream": True}
    with server.others.unharmed():
        deaf.sendall(request("/v1/completions", prompt=[1], **body))
        deaf.settimeout(DEADLINE)
        assert deaf.recv(1) == b"H"  # they have begun: it never reads more
        until(lambda: gauges(server.port)["num_streams"] <= 5)  # all made, nothing taken
    assert process_size(server.process.process.pid).resident < before + 200 * MEGABYTE
    deaf.close()
    until_idle(server.port)


def test_clients_that_vanish_at_every_phase(server: RunningServer) -> None:
    """200 of them: after connecting, within the head, within the body, while they wait, at the
    first byte, in the middle of a stream; by an orderly end or a reset.
    """
    choose = random.Random(0)

    def vanish(number: int) -> None:
        stream, n = choose.random() < 0.5, choose.choice([1, 3])
        data = request(
            "/v1/completions",
            **{"prompt": [1] * choose.choice([1, 600]), "n": n, "stream": stream},
            **{"max_tokens": 1500, "ignore_eos": True},
        )
        end_of_head = data.index(b"\r\n\r\n") + 4
        cuts = [0, 10, end_of_head, end_of_head + 5, len(data) - 1, len(data), len(data), len(data)]
        with connect(server.port) as connection:
            connection.sendall(data[: cuts[number % len(cuts)]])
            if number % len(cuts) > 5 and stream:
                connection.recv(choose.choice([1, 5000]))
            time.sleep(choose.random() * 0.05)
            if choose.random() < 0.5:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def held() -> tuple[float, int]:
        """Tasks and files of the server."""
        pid = server.process.process.pid
        return gauges(server.port)["num_tasks"], process_size(pid).num_files

    until_idle(server.port)
    before = held()
    with server.others.unharmed():
        for first in range(0, 200, 20):
            threads = [
                threading.Thread(target=vanish, args=(first + k,), daemon=True) for k in range(20)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(DEADLINE)
            assert not any(thread.is_alive() for thread in threads)
    until_idle(server.port)
    until(lambda: held() <= before, lambda: f"{held()} instead of {before}")


def test_two_requests_more_than_the_queue_holds(impatient: RunningServer) -> None:
    """Eight are held, four of which may run; all eight get what they get alone. The rank stands
    still meanwhile, so that none ends before the last has come.
    """
    path, body = "/v1/completions", {"prompt": [1], "max_tokens": 400, "ignore_eos": True}
    body |= {"seed": 3, "stream": True}
    (rank,) = impatient.process.ranks()
    alone = post(impatient.port, path, body)
    answers: list[object] = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(impatient.port, path, body)))
        for _ in range(8)
    ]
    with HealthWatch(impatient.port) as health:
        os.kill(rank, signal.SIGSTOP)
        try:
            for thread in threads:
                thread.start()
            until(lambda: gauges(impatient.port)["num_streams"] == 8)
            for stream in (False, True):
                refused = httpx.post(
                    f"http://127.0.0.1:{impatient.port}{path}",
                    json={"prompt": [1], "stream": stream},
                )
                assert refused.status_code == 429
                assert int(refused.headers["retry-after"]) >= 1
                assert refused.json()["error"]["code"] == "queue_full"
        finally:
            os.kill(rank, signal.SIGCONT)
        for thread in threads:
            thread.join(DEADLINE)
    assert health.answers > 0
    assert answers == [alone] * 8
    until_idle(impatient.port)


def test_a_port_that_is_taken_by_a_server(
    server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with server.others.unharmed():
        second = ServerProcess(
            tmp_path_factory.mktemp("nothing"),
            tmp_path_factory.mktemp("second"),
            *("--port", str(server.port)),
            program=PROGRAM,
        )
        assert second.wait() == 1
    assert f"port {server.port} of 127.0.0.1 is taken" in second.output


def test_more_connections_than_files_allowed_by_default(start_server: StartServer) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        server = start_server()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with server.others.unharmed(), contextlib.ExitStack() as held:
        for _ in range(400):
            held.enter_context(connect(server.port))
        assert get(server.port, "/health")[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", json.dumps({"prompt": "so it goes, " * 250_000}), 400),
        ("/v1/completions", json.dumps({"prompt": "\u4f60\u597d" * 500_000}), 400),
        (
            "/v1/chat/completions",
            json.dumps({"messages": [{"role": "user", "content": "so it goes, " * 250_000}]}),
            400,
        ),
        ("/v1/completions", '{"prompt":[' + "1," * 1_000_000 + "1]}", 400),
        ("/v1/completions", '{"prompt":[' + "1," * 1_500_000 + "1]}", 413),
        ("/v1/completions", '{"prompt":[' + "[]," * 1_000_000 + "[]]}", 413),
        ("/tokenize", json.dumps({"prompt": "so it " * 170_000, "return_token_strs": True}), 200),
        ("/detokenize", '{"tokens":[' + "1," * 1_000_000 + "1]}", 200),
        ("/v1/completions", '{"prompt":"a","' + "b" * 3_000_000 + '":1}', 200),
    ],
    ids=range(9),
)
def test_three_megabytes_do_not_hold_up_others(
    server: RunningServer, path: str, body: str, status: int
) -> None:
    """Where the loop were blocked for as long as the work takes, it would be for seconds."""
    with server.others.unharmed(), HealthWatch(server.port) as health:
        answer = httpx.post(
            f"http://127.0.0.1:{server.port}{path}",
            content=body,
            headers={"content-type": "application/json"},
            timeout=DEADLINE,
        )
    assert answer.status_code == status, answer.text[:300]
    assert health.answers > 0
    assert health.slowest < 2.0
    print(f"/health: {health.answers} answers, the slowest after {1000 * health.slowest:.0f} ms")
