"""Where a server listens, and what is said where it can't."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from minisgl.config import OptionError, ServerArgs
from minisgl.server.addresses import Listener, ListenError, open_listener, read_api_keys
from minisgl.server.listener import serve_http
from tests.python.waiting import PATIENCE, until


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["scheme"].encode()})


@contextlib.asynccontextmanager
async def serving(listener: Listener, app: ASGIApp = hello) -> AsyncIterator[Listener]:
    listener.listen()
    stop = asyncio.Event()
    task = asyncio.create_task(serve_http(app, listener, stop.wait))
    try:
        yield listener
    finally:
        stop.set()
        await task
        listener.close()


def opened(room: int = 100, **args: Any) -> Listener:
    return open_listener(ServerArgs(**args), room)


def two_addresses(monkeypatch: pytest.MonkeyPatch, second: str) -> None:
    """Gives "localhost" 127.0.0.1 and a second address."""
    family = socket.AF_INET6 if ":" in second else socket.AF_INET
    rest = (0, 0) if ":" in second else ()

    def resolve(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
            (family, socket.SOCK_STREAM, 6, "", (second, port, *rest)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.parametrize("second", ["::1", "127.0.0.2"])
def test_a_name_with_two_addresses(monkeypatch: pytest.MonkeyPatch, second: str) -> None:
    two_addresses(monkeypatch, second)
    with contextlib.closing(opened(host="localhost", port=0)) as listener:
        port = listener.port
        shown = f"[{second}]" if ":" in second else second
        assert listener.urls == f"http://127.0.0.1:{port}, http://{shown}:{port}"
        listener.listen()
        monkeypatch.undo()
        for address in ("127.0.0.1", second):
            socket.create_connection((address, port), timeout=PATIENCE).close()
        with pytest.raises(ListenError, match=f"port {port} of {second} is taken by another"):
            opened(host=second, port=port)


def test_an_address_that_the_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a name has beside others is passed over."""
    two_addresses(monkeypatch, "203.0.113.1")
    with contextlib.closing(opened(host="localhost", port=0)) as listener:
        assert listener.urls == f"http://127.0.0.1:{listener.port}"
    monkeypatch.undo()
    with pytest.raises(ListenError, match=r"203\.0\.113\.1 is not an address of this machine"):
        opened(host="203.0.113.1", port=0)


def test_a_process_that_is_started_does_not_hold_the_port() -> None:
    with contextlib.closing(Listener.bind("127.0.0.1", 0)) as listener:
        assert not any(listener.get_inheritable() for listener in listener.sockets)


async def test_a_unix_socket(tmp_path: Path) -> None:
    file = tmp_path / "server.sock"
    path = str(file)
    before = os.umask(0o177)
    try:
        listener = opened(uds=path)
    finally:
        os.umask(before)
    assert listener.urls == f"unix:{path}"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    async with serving(listener):
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path)) as http:
            assert (await http.get("http://minisgl/")).text == "http"
        with pytest.raises(ListenError, match=r"another program listens on --uds '.*server\.sock'"):
            opened(uds=path)
    assert not file.exists()


def test_what_is_at_the_place_of_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))  # and ends without having listened
    listener = opened(uds=str(path))
    path.unlink()
    path.write_text("somebody else's by now")
    listener.close()
    assert path.exists()
    with pytest.raises(ListenError, match=r"--uds '.*server\.sock' is there already, and is no s"):
        opened(uds=str(path))
    link = tmp_path / "link.sock"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(
        ListenError, match=r"link\.sock' is a symbolic link to '.*gone', which does"
    ):
        opened(uds=str(link))
    loop = tmp_path / "loop.sock"
    loop.symlink_to(loop)
    for bad in (
        "/nowhere/server.sock",
        str(tmp_path / ("x" * 120)),
        str(loop),
        str(path / "below"),
    ):
        with pytest.raises(ListenError, match="minisgl can't listen on --uds"):
            opened(uds=bad)


def openssl(*args: str, folder: Path) -> None:
    subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
async def test_tls(tmp_path: Path) -> None:
    for name in ("a", "b"):
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
        openssl("req", "-x509", *key, *files, *names, folder=tmp_path)
    openssl("ec", "-in", "a.key", "-aes128", "-passout", "pass:secret", "-out", "locked.key",
            folder=tmp_path)  # fmt: skip
    (tmp_path / "text").write_text("no certificate")
    a, b, locked, text = (str(tmp_path / name) for name in ("a.crt", "b.key", "locked.key", "text"))
    for certificate, key_file, sentence in (
        (a, b, "isn't the key of --ssl-certfile"),
        (a, locked, "is encrypted: a key without a password is needed"),
        (text, text, "are no certificate and private key in PEM form"),
        ("/nowhere", b, "--ssl-certfile '/nowhere' can't be read: No such file"),
        (a, "/nowhere", "--ssl-keyfile '/nowhere' can't be read: No such file"),
    ):
        with pytest.raises(ListenError, match=sentence):
            opened(port=0, ssl_certfile=certificate, ssl_keyfile=key_file)
    listener = opened(port=0, ssl_certfile=a, ssl_keyfile=str(tmp_path / "a.key"))
    assert listener.urls == f"https://127.0.0.1:{listener.port}"
    async with serving(listener):
        trust = ssl.create_default_context(cafile=a)
        async with httpx.AsyncClient(verify=trust) as http:
            for _ in range(2):
                assert (await http.get(listener.urls)).text == "https"
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")  # without TLS
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        writer.close()


def test_options_that_need_each_other() -> None:
    for option, sentence, args in (
        ("ssl_keyfile", "needs --ssl-certfile, too", {"ssl_keyfile": "a"}),
        ("ssl_certfile", "needs --ssl-keyfile, too", {"ssl_certfile": "a"}),
        ("root_path", "must be a path such as /model", {"root_path": "model"}),
        ("root_path", "without / at its end, got '/model/'", {"root_path": "/model/"}),
        ("allowed_origins", "got 'example.org'", {"allowed_origins": ("*", "example.org")}),
        ("allowed_hosts", "got 'a.example:80'", {"allowed_hosts": ("*", "a.example:80")}),
        ("api_key", "must not be empty", {"api_key": ("a", "")}),
        ("api_key", "must not have control characters", {"api_key": ("a", "a\nb")}),
        ("api_key", "must not have control characters", {"api_key": ("a\x7f",)}),
        ("api_key", "must not begin or end with a space", {"api_key": ("a ",)}),
    ):
        with pytest.raises(OptionError, match=sentence) as refused:
            ServerArgs(**args)  # type: ignore[arg-type]
        assert refused.value.option == option


def test_keys_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first, with a comma\n\n  second\n", "utf-8")
    args = ServerArgs(api_key=("own",), api_key_file=str(file))
    assert read_api_keys(args) == ("own", "first, with a comma", "second")
    file.write_text("\n \n")
    with pytest.raises(ListenError, match=r"--api-key-file '.*keys' has no key: one per line"):
        read_api_keys(args)
    file.write_text("first\nsec\x01ond\n")
    with pytest.raises(ListenError, match=r"keys': key 2 must not have control characters"):
        read_api_keys(args)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ListenError, match=r"--api-key-file '.*keys' can't be read"):
        read_api_keys(args)
    file.write_text("k" * 2**20)
    with pytest.raises(ListenError, match=r"--api-key-file '.*keys' is too large"):
        read_api_keys(args)
    with pytest.raises(ListenError, match="can't be read: No such file or directory"):
        read_api_keys(ServerArgs(api_key_file=str(tmp_path / "none")))


def test_more_connections_than_files() -> None:
    with pytest.raises(ListenError, match="--max-connections 101 is more than the 100 that the li"):
        opened(port=0, max_connections=101)
    for given, limit in ((0, 100), (7, 7)):
        with contextlib.closing(opened(port=0, max_connections=given)) as listener:
            assert listener.max_connections == limit


async def test_connections_beyond_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    """One more takes the place of an idle one; where all are at work it is refused."""
    go_on = asyncio.Event()
    begun = 0

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal begun
        if scope["path"] == "/slow":
            begun += 1
            await go_on.wait()
        await hello(scope, receive, send)

    listener = Listener.bind("127.0.0.1", 0)
    listener.max_connections = 3
    slow_request, request = (
        b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path for path in (b"/slow", b"/")
    )
    async with serving(listener, slow):
        held = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(3)]
        for (_, writer), data in zip(held, (slow_request, request, b"GET / H"), strict=True):
            writer.write(data)
        await until(lambda: begun == 1)
        assert (await held[1][0].readuntil(b"http\r\n0\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        for _ in range(2):  # the places of the idle ones
            held.append(await asyncio.open_connection("127.0.0.1", listener.port))
            held[-1][1].write(slow_request)
            await until(lambda: begun == len(held) - 2)  # type: ignore[misc]
        for reader, _ in held[1:3]:
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            answer = await asyncio.wait_for(reader.read(), PATIENCE)
            assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b'"code":"too_many_connections"' in answer
            assert b"retry-after: 1\r\n" in answer.lower()
            writer.close()
        assert [record.getMessage() for record in caplog.records] == [
            "all 3 connections (--max-connections) have requests under way: further ones are "
            "answered with 503 (1 until now)"
        ]
        go_on.set()
        for reader, writer in (held[0], *held[3:]):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n"), PATIENCE)
            assert head == b"HTTP/1.1 200 OK\r\n"
            writer.close()
        for _, writer in held:
            writer.close()
