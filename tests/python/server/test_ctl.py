"""minisgl-ctl against a real server's admin pages, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Iterator

import pytest

from minisgl import ctl
from tests.python.server.conftest import StartServer
from tests.python.server.test_admin import Admin, admin

__all__ = ["admin"]  # the fixture


async def ctl_at(url: str, *words: str, key: str = "for operators") -> int:
    return await asyncio.to_thread(ctl.run, ["--url", url, "--admin-api-key", key, *words])


async def test_replicas_are_listed_added_restarted_and_removed(
    admin: Admin, capsys: pytest.CaptureFixture[str]
) -> None:
    url = admin.server.url
    assert await ctl_at(url, "replicas", "add") == 0
    assert capsys.readouterr().out.splitlines() == [
        "replica 1: starting (paper)",
        "replica 1: ready",
    ]
    assert await ctl_at(url, "replicas", "list") == 0
    assert capsys.readouterr().out.splitlines() == [
        "replica  state  requests  waiting tokens  restarts  place  model",
        "0        ready  0         0               0         paper  paper",
        "1        ready  0         0               0         paper  paper",
    ]
    assert await ctl_at(url, "replicas", "restart", "0") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "replica 0: draining (live 0, moved 0)"
    assert lines[-1] == "replica 0: ready"
    assert await ctl_at(url, "replicas", "remove", "0", "--drain", "0.5") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "replica 0: removed"
    assert await admin.numbers() == [1]


async def test_all_replicas_are_replaced(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    url = admin.server.url
    words = ("replicas", "replace", "--model", "parchment", "--revision", "v2")
    assert await ctl_at(url, *words, "--drain", "5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "all replicas: searching (parchment, revision v2)"
    assert lines[-1] == "all replicas: replaced (parchment, revision v2)"
    assert await ctl_at(url, "replicas", "list") == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("paper  parchment (v2)")
    assert await ctl_at(url, "replicas", "replace", "--model", "none") == 1
    assert capsys.readouterr().out.endswith("(there is no model at 'none'; nothing has changed)\n")


async def test_a_refusal_is_the_servers_own_sentence(
    admin: Admin, start_server: StartServer
) -> None:
    url = admin.server.url
    with pytest.raises(ctl.CtlError, match=r"refuses it \(409\): Replica 0 can't be removed: no"):
        await ctl_at(url, "replicas", "remove", "0")
    with pytest.raises(ctl.CtlError, match=r"refuses it \(404\): .*no replica"):
        await ctl_at(url, "replicas", "restart", "7")
    with pytest.raises(ctl.CtlError, match=r"refuses it \(401\)"):
        await ctl_at(url, "replicas", "list", key="for clients")
    async with start_server() as without:
        with pytest.raises(ctl.CtlError, match="started without --admin-api-key"):
            await ctl_at(without.url, "replicas", "list")


@pytest.fixture
def misbehaving() -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers everything with the same bytes, and those bytes."""
    said: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(said[0])

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", said
        server.shutdown()


async def test_a_change_that_fails_or_breaks_off_is_no_success(
    misbehaving: tuple[str, list[bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, said = misbehaving
    said[:] = [b'data: {"replica": 3, "state": "failed", "reason": "no memory"}\n\n']
    assert await ctl_at(url, "replicas", "add") == 1
    assert capsys.readouterr().out == "replica 3: failed (no memory)\n"
    said[:] = [b'data: {"replica": 3, "state": "starting", "phase": "loading weights 5%"}\n\n']
    with pytest.raises(ctl.CtlError, match=r"before the change did \(it was at: starting\)"):
        await ctl_at(url, "replicas", "add")
    assert capsys.readouterr().out == "replica 3: starting (loading weights 5%)\n"
    said[:] = [b'data: {"replica": 1, "state": "removed"}\n\n']  # one of several
    with pytest.raises(ctl.CtlError, match=r"before the change did \(it was at: removed\)"):
        await ctl_at(url, "replicas", "replace", "--model", "parchment")
    capsys.readouterr()
    for nonsense in (b"data: 5\n\n", b"data: {\n\n", b"data: [[1]]\n\n"):
        said[:] = [nonsense]
        with pytest.raises(ctl.CtlError, match="doesn't know"):
            await ctl_at(url, "replicas", "add")
    said[:] = [b""]
    assert await ctl_at(url, "replicas", "add") == 1
    for nonsense in (b"", b"{}", b'{"replicas": [5]}', b'{"replicas": 5}'):
        said[:] = [nonsense]
        with pytest.raises(ctl.CtlError, match="doesn't know"):
            await ctl_at(url, "replicas", "list")


async def test_nobody_there_no_key_and_a_bad_address_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ctl.CtlError, match=r"no server answers at http://127\.0\.0\.1:1"):
        await ctl_at("http://127.0.0.1:1", "replicas", "list")
    for address in ("127.0.0.1:8000", "ftp://x", "http://", "http://h:port"):
        with pytest.raises(ctl.CtlError, match=r"--url must be|no server answers"):
            await ctl_at(address, "replicas", "list")
    monkeypatch.delenv(ctl.KEY_VARIABLE, raising=False)
    monkeypatch.setattr("sys.argv", ["minisgl-ctl", "replicas", "list"])
    assert ctl.main() == 1
    assert "no key: set MINISGL_ADMIN_API_KEY" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["minisgl-ctl", "replicas", "remove", "-1"])
    with pytest.raises(SystemExit):
        ctl.main()
