"""A server whose replicas run in a Ray cluster: what Ray loses, no client notices."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.python.launch import servers
from tests.python.launch.servers import (
    Stream,
    alive,
    get,
    is_called,
    make_model,
    processes,
    until,
)
from tests.python.ray.conftest import Cluster, StartServer

PROMPT, TOKENS = [5, 6, 7], 1500


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head and its nodes take long to start where the machine has other things to do."""
    monkeypatch.setattr(servers, "DEADLINE", 120.0)


def text_of(stream: Stream) -> str:
    """All text of a stream that ended well. Its lines may have characters that end lines in it."""
    stream.join()
    assert stream.events[-1] == "data: [DONE]", stream.events[-3:]
    chunks = [json.loads(event.removeprefix("data: ")) for event in stream.events[:-1]]
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


def ranks_of_actors() -> list[int]:
    """Rank processes whose parent is an actor of ours. Other tests may have ranks, too."""
    ranks = [pid for pid in processes() if is_called(pid, "minisgl-TP0-scheduler-R")]
    return [rank for rank in ranks if is_called(parent(rank), "RankHost")]


def ready_replicas(port: int) -> int:
    ready: int = get(port, "/ready")[1].get("replicas", {}).get("ready", 0)
    return ready


def replicas_are_back(port: int, *gone: int) -> bool:
    """Whether two serve, and none of those processes is left."""
    return not any(map(alive, gone)) and len(ranks_of_actors()) == 2 and ready_replicas(port) == 2


def parent(pid: int) -> int:
    return int(processes().get(pid, ("", "0"))[1])


def addresses_of_ray() -> set[str]:
    """Where processes of Ray's listen."""
    listening = subprocess.run(["ss", "-ltnpH"], check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in listening.splitlines()]
    found = {row[3] for row in rows if '"ray' in row[-1] or "gcs_server" in row[-1]}
    return {
        address.rpartition(":")[0].replace("[::ffff:127.0.0.1]", "127.0.0.1") for address in found
    }


def test_replicas_in_a_cluster_survive_what_becomes_of_it(
    cluster: Cluster, start_server: StartServer
) -> None:
    nodes = [cluster.add_node(), cluster.add_node()]
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
    cluster.remove_node(nodes.pop())
    assert [text_of(stream) for stream in streams] == [expected] * 4
    until(lambda: ready_replicas(port) == 1)
    nodes.append(cluster.add_node())
    until(lambda: ready_replicas(port) == 2)

    assert addresses_of_ray() == {"127.0.0.1"}
    server.signal(signal.SIGTERM)
    assert server.wait() == 0, server.output
    until(lambda: not ranks_of_actors())
    for node in nodes:
        cluster.remove_node(node)


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
def test_the_server_outlives_the_head(cluster: Cluster, start_server: StartServer) -> None:
    cluster.add_node()
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
    cluster.add_node()
    server.wait_for_line("the Ray cluster is there again")
    assert text_of(stream) == expected
