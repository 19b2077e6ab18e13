"""A server in a Ray cluster has as many replicas as its requests need, and Ray has room for."""

from __future__ import annotations

import pytest

from tests.python.launch.servers import until
from tests.python.ray.conftest import Cluster, StartServer
from tests.python.ray.streams import load, parent, ranks_of_actors, ready_replicas, texts_now
from tests.python.running.test_replicas import KEY, shown


@pytest.mark.long
def test_one_is_added_while_requests_wait_once_there_is_a_node_for_it(
    cluster: Cluster, start_server: StartServer
) -> None:
    nodes = [cluster.add_node()]
    flags = ("--max-replicas", "2", "--max-running", "1", "--admin-api-key", KEY)
    server = start_server(*flags)
    port = server.wait_ready()
    expected = texts_now(port)
    with load(port) as texts:
        server.wait_for_line(r"replica 1 is added because all replicas \(1\) have too much to do")
        until(lambda: "waiting for Ray to place" in shown(port)[1]["phase"])
        nodes.append(cluster.add_node())
        until(lambda: ready_replicas(port) == 2)
    assert texts == [expected] * len(texts)
    assert len({parent(rank) for rank in ranks_of_actors()}) == 2
    server.end_in_order()
    for node in nodes:
        cluster.remove_node(node)
