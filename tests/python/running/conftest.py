"""A real server over a small random model, and clients that must not notice the hostile ones."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.python.launch.servers import ServerProcess
from tests.python.running.bystanders import Bystanders
from tests.python.running.tiny_model import make_tiny_model

MAX_MODEL_LEN = 4096
PROGRAM = ("-m", "minisgl")  # what the command minisgl-serve runs


@dataclass
class RunningServer:
    """A server that is ready, and the bystanders that were alone with it once."""

    process: ServerProcess
    port: int
    others: Bystanders


StartServer = Callable[..., RunningServer]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("running") / "tiny")


@pytest.fixture(scope="module")
def start_server(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartServer]:
    """Starts servers, and sees to it that each ends in order and without a traceback."""
    servers: list[ServerProcess] = []

    def start(*flags: str) -> RunningServer:
        process = ServerProcess(
            tiny_model,
            tmp_path_factory.mktemp("server"),
            *("--max-model-len", str(MAX_MODEL_LEN), "--kv-cache-tokens", "64K", *flags),
            program=PROGRAM,
        )
        servers.append(process)
        port = process.wait_ready()
        return RunningServer(process, port, Bystanders(port))

    yield start
    for server in servers:
        server.signal(signal.SIGTERM)
    for server in servers:
        assert server.wait() == 0, server.output
        assert "Traceback" not in server.output
        assert " ERROR " not in server.output


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> RunningServer:
    """With the defaults, for the tests of a file."""
    return start_server()
