"""A host that joins a running server: replicas are added there, and their streams outlive it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from minisgl import ctl
from tests.python.launch.servers import ServerProcess, Stream, alive, until
from tests.python.ports import free_port
from tests.python.running.conftest import PROGRAM
from tests.python.running.test_ranks import text_of

SECRETS = {"MINISGL_DIST_SECRET": "known to two hosts", "MINISGL_ADMIN_API_KEY": "the operator's"}
TOKENS = 1500


@pytest.fixture
def processes(tmp_path: Path, tiny_model: Path) -> Iterator[list[ServerProcess]]:
    """A server, and a host that has joined it."""
    address = f"127.0.0.1:{free_port()}"
    roles = (("--dist-init-addr", address), ("--join", address))
    started = [
        ServerProcess(
            tiny_model,
            tmp_path / role[0],
            *("--device", "cpu", "--kv-cache-tokens", "16K", *role),
            program=PROGRAM,
            environment=SECRETS,
        )
        for role in roles
    ]
    yield started
    for process in started:
        process.end_in_order()


def test_replicas_are_added_on_a_host_that_joins_and_outlived(
    processes: list[ServerProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    server, guest = processes
    port = server.wait_ready()
    server.wait_for_line(r"host \d+ is there")
    expected = text_of(Stream(port, [5, 6, 7], TOKENS))

    def operate(*words: str) -> str:
        key = SECRETS["MINISGL_ADMIN_API_KEY"]
        url = f"http://127.0.0.1:{port}"
        assert ctl.run(["--url", url, "--admin-api-key", key, "replicas", *words]) == 0
        return capsys.readouterr().out

    assert "replica 1: starting (host " in operate("add")
    (rank,) = guest.ranks()
    # The local one goes: all that is served is served there.
    assert operate("remove", "0").endswith("replica 0: removed\n")
    assert text_of(Stream(port, [5, 6, 7], TOKENS)) == expected
    assert operate("add").endswith("replica 2: ready\n")
    streams = [Stream(port, [5, 6, 7], TOKENS) for _ in range(4)]
    for stream in streams:
        stream.wait_events(1)
    guest.process.kill()
    assert [text_of(stream) for stream in streams] == [expected] * 4
    until(lambda: not alive(rank))
    assert "2        ready" in operate("list")
