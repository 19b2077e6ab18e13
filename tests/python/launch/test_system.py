"""minisgl-serve where the system gives it little: streams, files, threads, a home."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from minisgl.environment import default_cache_dir
from minisgl.model_files.files import ModelError
from minisgl.model_files.source import resolve_model
from minisgl.system import (
    FILES_PER_CHILD,
    MAX_OPEN_FILES,
    MIN_CONNECTIONS,
    OWN_FILES,
    connection_limit,
    raise_file_limit,
)
from tests.python.launch.servers import (
    DEADLINE,
    SERVER,
    ServerProcess,
    Stream,
    get,
    make_model,
    until,
)
from tests.python.ports import free_port

STACK = 2 << 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("system") / "tiny")


def run(model: Path, folder: Path, limit: Callable[[], None], *flags: str) -> tuple[int, str]:
    """Status and standard error of a server that ends by itself; it must leave nothing."""
    folder.mkdir(exist_ok=True)
    result = subprocess.run(
        [sys.executable, str(SERVER), "--port", "0", *flags, str(model)],
        preexec_fn=limit,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert os.listdir(folder) == []
    return result.returncode, result.stderr


def limit_files(count: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def limit_threads(count: int) -> Callable[[], None]:
    """Room for the stacks of so many threads: who may do everything has no limit of processes."""

    def limit() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_STACK)
        resource.setrlimit(resource.RLIMIT_STACK, (STACK, hard))
        resource.setrlimit(resource.RLIMIT_AS, ((count + 1) * STACK - STACK // 16,) * 2)

    return limit


def test_too_few_files(model: Path, tmp_path: Path) -> None:
    assert run(model, tmp_path / "tmp", limit_files(8)) == (
        1,
        "minisgl-serve: error: this process may open 8 files, and needs 100: raise the limit "
        "(ulimit -n)\n",
    )


def test_files_that_are_just_enough(model: Path, tmp_path: Path) -> None:
    count = OWN_FILES + MIN_CONNECTIONS + 3 * FILES_PER_CHILD
    flags = ("--num-tokenizer", "2")
    server = ServerProcess(model, tmp_path / "tmp", *flags, limit=limit_files(count))
    try:
        assert Stream(server.wait_ready(), [1], 5).join().endswith("data: [DONE]")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "Traceback" not in server.output
    finally:
        if server.process.poll() is None:
            server.end()


@pytest.mark.parametrize(
    ("soft", "hard", "files"),
    [
        (1024, 1024, 1024),
        (1024, 4096, 4096),
        (1024, resource.RLIM_INFINITY, MAX_OPEN_FILES),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, MAX_OPEN_FILES),
    ],
)
def test_the_files_for_connections(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, files: int
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, values: limits.append(values))
    raise_file_limit()
    assert limits[-1][1] == hard
    assert connection_limit(1) == files - OWN_FILES
    assert connection_limit(3) == files - OWN_FILES - 2 * FILES_PER_CHILD


def test_too_few_threads(model: Path, tmp_path: Path) -> None:
    status, output = run(model, tmp_path / "tmp", limit_threads(5))
    assert status == 1
    (line,) = output.splitlines()
    assert "this process can start 5 threads, and needs 11 for itself" in line


def test_nohup_and_closed_streams(model: Path, tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        close_all((0, 1))

    server = ServerProcess(model, tmp_path / "tmp", "--num-tokenizer", "1", limit=limit)
    try:
        port = server.wait_ready()
        server.signal(signal.SIGHUP)
        assert Stream(port, [1], 50).join().endswith("data: [DONE]")
        assert "shutting down" not in server.output
        for process in (server.process.pid, *server.children()):
            for number in (0, 1, 2):
                assert os.path.exists(f"/proc/{process}/fd/{number}")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert server.files() == []
    finally:
        if server.process.poll() is None:
            server.end()


def test_no_stream_at_all(model: Path, tmp_path: Path) -> None:
    port = free_port()
    server = ServerProcess(
        model, tmp_path / "tmp", "--port", str(port), limit=lambda: close_all((0, 1, 2))
    )

    def ready() -> bool:
        try:
            return get(port, "/ready")[0] == 200
        except ConnectionError:
            return False

    try:
        until(ready)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    finally:
        if server.process.poll() is None:
            server.end()


def close_all(descriptors: tuple[int, ...]) -> None:
    for number in descriptors:
        os.close(number)


def test_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")

    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert default_cache_dir() is None
    with pytest.raises(ModelError, match="there is no home folder .* XDG_CACHE_HOME"):
        resolve_model(None)
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(ModelError, match="no home folder to keep a model of Hugging Face in"):
        resolve_model("org/name")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "minisgl"


def test_the_terminals_end_lets_streams_end(model: Path, tmp_path: Path) -> None:
    server = ServerProcess(model, tmp_path / "tmp")
    stream = Stream(server.wait_ready(), [1], 200)
    stream.wait_events(3)
    server.signal(signal.SIGHUP)
    server.wait_for_line(r"shutting down: live requests \(1\) have up to")
    server.signal(signal.SIGHUP)  # it is told several times
    assert stream.join().endswith("data: [DONE]")
    assert server.wait() == 0
    assert server.files() == []


def test_clients_leave_the_files_that_a_dead_engine_needs(model: Path, tmp_path: Path) -> None:
    """They hold all that they can have when it dies, and go on asking for more."""
    files = OWN_FILES + 40
    server = ServerProcess(model, tmp_path / "tmp", limit=limit_files(files))
    port = server.wait_ready()
    clients = []
    try:
        for _ in range(files + 20):
            clients.append(socket.create_connection(("127.0.0.1", port), timeout=DEADLINE))
        (rank,) = server.children()
        os.kill(rank, signal.SIGKILL)
        server.wait_for_line("the engine is ready again")
        assert "starting it again" in server.output
        assert server.output.count("the engine died") == 1
        assert server.files() == []
    finally:
        for client in clients:
            client.close()
    until(lambda: Stream(port, [1], 5).join().endswith("data: [DONE]"))
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def test_a_start_that_hangs_ends_at_one_signal(model: Path, tmp_path: Path) -> None:
    """The tokenizer's file is on a disk that doesn't answer."""
    program = f"""
import runpy, time
from minisgl.text import frontend
frontend.load_tokenizer = lambda *args, **options: time.sleep(3600)
runpy.run_path({str(SERVER)!r}, run_name="__main__")
"""
    server = ServerProcess(model, tmp_path / "tmp", program=("-c", program))
    server.wait_for_line("loading weights")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert "Traceback" not in server.output
    assert server.files() == []
