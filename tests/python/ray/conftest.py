"""Clusters of several nodes on this machine, which listen at the loopback address and nowhere else,
and tell nobody of it.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.python.launch import servers
from tests.python.launch.servers import ServerProcess
from tests.python.ports import LOOPBACK, free_port
from tests.python.running.conftest import PROGRAM
from tests.python.running.tiny_model import make_tiny_model

# Ray takes a loopback address for another host's mistake unless it is told so.
SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_gcs_rpc_server_reconnect_timeout_s": "3",  # seconds that a lost head is waited for
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    missing = importlib.util.find_spec("ray") is None
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.ray)
            if missing:
                item.add_marker(pytest.mark.skip("needs Ray: pip install 'minisgl[ray]'"))


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head and its nodes take long to start where the machine has other things to do."""
    monkeypatch.setattr(servers, "DEADLINE", 120.0)


class Cluster:
    """A head without CPUs, and nodes with some."""

    def __init__(self) -> None:
        self._port = free_port()
        self._cluster: Any = None
        self.start_head()

    @property
    def settings(self) -> dict[str, str]:
        """The environment of a server that belongs to it."""
        return {**SETTINGS, "RAY_ADDRESS": f"{LOOPBACK}:{self._port}"}

    def start_head(self) -> None:
        from ray.cluster_utils import Cluster as Nodes

        self._cluster = Nodes(shutdown_at_exit=False)
        self._add(num_cpus=0, gcs_server_port=self._port, include_dashboard=False)

    def _add(self, **settings: Any) -> Any:
        memory = 80 * 2**20
        return self._cluster.add_node(
            node_ip_address=LOOPBACK, object_store_memory=memory, **settings
        )

    def add_node(self, cpus: int = 1, gpus: int = 0) -> Any:
        return self._add(num_cpus=cpus, num_gpus=gpus)

    def remove_node(self, node: Any) -> None:
        self._cluster.remove_node(node, allow_graceful=False)

    def end_head(self) -> None:
        """The head is gone, without a word to anybody; so is, after a while, all that it led."""
        self._cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)

    def end(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("ray") / "tiny")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    before = dict(os.environ)
    os.environ.update(SETTINGS)
    made = Cluster()
    yield made
    made.end()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def two_nodes(cluster: Cluster) -> Iterator[list[Any]]:
    """With one CPU each; those that are in the list at the end are removed."""
    nodes = [cluster.add_node(), cluster.add_node()]
    yield nodes
    for node in nodes:
        cluster.remove_node(node)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another revision."""
    return make_tiny_model(tmp_path_factory.mktemp("revisions") / "next", seed=1)


StartServer = Callable[..., ServerProcess]


@pytest.fixture
def start_server(cluster: Cluster, tiny_model: Path, tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers in the cluster, and sees to it that each ends in order."""
    started: list[ServerProcess] = []

    def start(
        *flags: str, model: Path | str = tiny_model, program: Sequence[str] = PROGRAM
    ) -> ServerProcess:
        server = ServerProcess(
            model,
            tmp_path / f"server-{len(started)}",
            *("--cluster", "ray", "--device", "cpu", "--kv-cache-tokens", "16K", *flags),
            program=program,
            environment=cluster.settings,
        )
        started.append(server)
        return server

    yield start
    for server in started:
        server.end_in_order()
