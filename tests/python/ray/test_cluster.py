"""A server whose replicas run in a Ray cluster: what Ray loses, no client notices."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.python.launch import servers
from tests.python.launch.servers import Stream, get, make_model, until
from tests.python.ray.conftest import Cluster, StartServer
from tests.python.ray.streams import (
    load,
    of_one_revision,
    parent,
    ranks_of_actors,
    ready_replicas,
    replaced,
    replicas_are_back,
    text_of,
    texts_now,
)
from tests.python.running.test_replicas import KEY, shown

PROMPT, TOKENS = [5, 6, 7], 1500


def addresses_of_ray() -> set[str]:
    """Where processes of Ray's listen."""
    listening = subprocess.run(["ss", "-ltnpH"], check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in listening.splitlines()]
    found = {row[3] for row in rows if '"ray' in row[-1] or "gcs_server" in row[-1]}
    return {
        address.rpartition(":")[0].replace("[::ffff:127.0.0.1]", "127.0.0.1") for address in found
    }


def test_replicas_in_a_cluster_survive_what_becomes_of_it(
    cluster: Cluster, two_nodes: list[Any], start_server: StartServer
) -> None:
    server = start_server("--replicas", "2")
    port = server.wait_ready()
    until(lambda: ready_replicas(port) == 2)
    ranks = ranks_of_actors()
    assert len(ranks) == 2
    assert len({parent(rank) for rank in ranks}) == 2
    expected = text_of(Stream(port, PROMPT, TOKENS))

    # A rank dies: its actor stays and starts another one.
    actors = {parent(rank) for rank in ranks}
    streams = [Stream(port, PROMPT, TOKENS) for _ in range(4)]
    for stream in streams:
        stream.wait_events(1)
    os.kill(ranks[0], signal.SIGKILL)
    assert [text_of(stream) for stream in streams] == [expected] * 4
    until(lambda: replicas_are_back(port, ranks[0]))
    ranks = ranks_of_actors()
    assert {parent(rank) for rank in ranks} == actors

    # An actor dies, and its rank with it.
    streams = [Stream(port, PROMPT, TOKENS) for _ in range(4)]
    for stream in streams:
        stream.wait_events(1)
    actor = parent(ranks[0])
    os.kill(actor, signal.SIGKILL)
    assert [text_of(stream) for stream in streams] == [expected] * 4
    server.wait_for_line("ended with its Ray actor")
    until(lambda: replicas_are_back(port, ranks[0], actor))

    # A node is removed: its replica waits for another one.
    streams = [Stream(port, PROMPT, TOKENS) for _ in range(4)]
    for stream in streams:
        stream.wait_events(1)
    cluster.remove_node(two_nodes.pop())
    assert [text_of(stream) for stream in streams] == [expected] * 4
    until(lambda: ready_replicas(port) == 1)
    two_nodes.append(cluster.add_node())
    until(lambda: ready_replicas(port) == 2)

    assert addresses_of_ray() == {"127.0.0.1"}
    server.signal(signal.SIGTERM)
    assert server.wait() == 0, server.output
    until(lambda: not ranks_of_actors())


def test_a_roll_under_streams(
    two_nodes: list[Any], start_server: StartServer, other_model: Path
) -> None:
    server = start_server("--replicas", "2", "--admin-api-key", KEY)
    port = server.wait_ready()
    until(lambda: ready_replicas(port) == 2)
    old = texts_now(port)
    actors = {parent(rank) for rank in ranks_of_actors()}
    assert "no such folder" in replaced(port, other_model / "nowhere")["reason"]
    with load(port) as texts:
        last = replaced(port, other_model)
    assert (last["state"], last["model"]) == ("replaced", str(other_model)), server.output
    of_one_revision(texts, old, texts_now(port))
    assert {one["model"] for one in shown(port)} == {str(other_model)}
    assert ready_replicas(port) == 2
    # Each has stayed in its place.
    assert {parent(rank) for rank in ranks_of_actors()} == actors


@pytest.mark.long
def test_replicas_on_gpus_of_one_node_share_its_memory(
    cluster: Cluster,
    start_server: StartServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GPUs that Ray believes in, under ranks that don't compute."""
    monkeypatch.setenv("FAKE_RANK_KIND", "any")
    monkeypatch.setenv("FAKE_RANK_NOTES", str(tmp_path / "notes"))
    node = cluster.add_node(cpus=2, gpus=2)
    flags = ("--device", "auto", "--replicas", "2", "--kv-host-bytes", "3001")
    model = make_model(tmp_path / "model")
    server = start_server(*flags, model=model, program=(str(servers.SERVER),))
    port = server.wait_ready()
    until(lambda: ready_replicas(port) == 2)
    assert (tmp_path / "notes").read_text().splitlines() == [f"{model} 1501"] * 2
    server.end_in_order()
    cluster.remove_node(node)


@pytest.mark.long
def test_the_server_outlives_the_head(
    cluster: Cluster, two_nodes: list[Any], start_server: StartServer
) -> None:
    server = start_server()
    port = server.wait_ready()
    expected = text_of(Stream(port, PROMPT, 8 * TOKENS))

    stream = Stream(port, PROMPT, 8 * TOKENS)
    stream.wait_events(1)
    cluster.end_head()
    server.wait_for_line("the Ray cluster is lost")
    assert get(port, "/health")[0] in (200, 503)
    cluster.end()

    cluster.start_head()
    two_nodes[:] = [cluster.add_node()]
    server.wait_for_line("the Ray cluster is there again")
    assert text_of(stream) == expected
