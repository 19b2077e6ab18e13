"""All replicas of a server in a Ray cluster are replaced by another model revision, beside what
Ray loses and a hub whose branch moves on. test_cluster.py has the plain case.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.python.launch import servers
from tests.python.launch.servers import is_called, until
from tests.python.model_files.small_hub import SmallHub, files_of, serving_hub
from tests.python.ray.conftest import Cluster, StartServer
from tests.python.ray.streams import (
    load,
    of_one_revision,
    parent,
    ranks_of_actors,
    ready_replicas,
    replaced,
    replicas_are_back,
    texts_now,
)
from tests.python.running.test_replicas import KEY, changed, shown


@pytest.fixture(scope="module", autouse=True)
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallHub]:
    """That the nodes and servers of this file know."""
    with serving_hub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.address)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("cache")))
        yield hub


@pytest.mark.long
def test_one_replica_is_replaced_by_one_beside_it(
    two_nodes: list[Any], start_server: StartServer, other_model: Path
) -> None:
    server = start_server("--admin-api-key", KEY)
    port = server.wait_ready()
    old = texts_now(port)
    with load(port) as texts:
        last = replaced(port, other_model)
    assert last["state"] == "replaced", server.output
    of_one_revision(texts, old, texts_now(port))
    assert [one["number"] for one in shown(port)] == [1]
    until(lambda: len(ranks_of_actors()) == 1)


@pytest.mark.long
@pytest.mark.parametrize("lost", ["actor", "node"])
def test_a_roll_while_the_last_of_the_old_revision_is_lost(
    two_nodes: list[Any], start_server: StartServer, other_model: Path, cluster: Cluster, lost: str
) -> None:
    server = start_server("--replicas", "2", "--admin-api-key", KEY)
    port = server.wait_ready()
    until(lambda: ready_replicas(port) == 2)
    old = texts_now(port)
    last: list[dict[str, Any]] = []
    with load(port) as texts:
        roll = threading.Thread(target=lambda: last.append(replaced(port, other_model)))
        roll.start()
        until(lambda: {one["number"]: one["model"] for one in shown(port)}[0] == str(other_model))
        if lost == "actor":
            (rank,) = (rank for rank in ranks_of_actors() if is_called(rank, "scheduler-R1"))
            os.kill(parent(rank), signal.SIGKILL)
        else:
            cluster.remove_node(two_nodes.pop(0))
            two_nodes.append(cluster.add_node())
        roll.join(servers.DEADLINE)
    if last[0]["state"] != "replaced":  # it came to one that couldn't be started just then
        assert "replica 1 can't be replaced" in last[0]["reason"]
        until(lambda: ready_replicas(port) == 2)
        assert replaced(port, other_model)["state"] == "replaced"
    of_one_revision(texts, old, texts_now(port))
    until(lambda: ready_replicas(port) == 2)
    assert {one["model"] for one in shown(port)} == {str(other_model)}


@pytest.mark.long
def test_hosts_look_for_the_commit_that_the_server_has_found(
    hub: SmallHub,
    two_nodes: list[Any],
    start_server: StartServer,
    tiny_model: Path,
    other_model: Path,
) -> None:
    """However often the branch means another one meanwhile."""
    commits = [hub.push("org/tiny", files_of(tiny_model), "main")]
    server = start_server("--replicas", "2", "--admin-api-key", KEY, model="org/tiny")
    port = server.wait_ready()
    until(lambda: ready_replicas(port) == 2)

    def moved(folder: Path, expected: list[str]) -> None:
        """The branch moves on, and no replica with it, though it gets another actor."""
        commits.append(hub.push("org/tiny", files_of(folder), "main"))
        for rank in ranks_of_actors():
            gone = (rank, parent(rank))
            os.kill(gone[1], signal.SIGKILL)
            until(lambda gone=gone: replicas_are_back(port, *gone))  # type: ignore[misc]
        assert texts_now(port) == expected

    old = texts_now(port)
    moved(other_model, old)
    assert {one["revision"] for one in shown(port)} == {commits[0]}
    with load(port) as texts:
        last = changed(port, "POST", "/replace", {"revision": "main"})
    assert (last["state"], last["model"], last["revision"]) == ("replaced", "org/tiny", commits[1])
    new = texts_now(port)
    of_one_revision(texts, old, new)
    moved(tiny_model, new)
    assert {one["revision"] for one in shown(port)} == {commits[1]}
