"""A server of three replicas under streams: none of them notices which replica is lost, or how."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.python.launch.servers import (
    DEADLINE,
    ServerProcess,
    Stream,
    alive,
    get,
    is_called,
    until,
)
from tests.python.running.conftest import PROGRAM
from tests.python.running.test_ranks import text_of
from tests.python.running.tiny_model import make_tiny_model

KEY = "for operators"
NUM_STREAMS = 16
TOKENS = 2000  # for about a second, so that none ends before its replica is lost
# Every second one is drawn, with penalties: both go on from where the stream is.
DRAWN = {"temperature": 0.8, "seed": 7, "frequency_penalty": 0.3, "repetition_penalty": 1.1}


@contextlib.contextmanager
def replicas(model: Path, folder: Path, count: int, *flags: str) -> Iterator[ServerProcess]:
    """A server whose replicas all serve; it has to end in order."""
    flags = ("--replicas", str(count), "--device", "cpu", "--admin-api-key", KEY, *flags)
    server = ServerProcess(model, folder, *flags, program=PROGRAM)
    port = server.wait_ready()
    until(lambda: serving(port) == count)
    yield server
    server.signal(signal.SIGTERM)
    assert server.wait() == 0, server.output
    assert "Traceback" not in server.output


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with replicas(tiny_model, tmp_path_factory.mktemp("server"), 3) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(server: ServerProcess) -> list[str]:
    """What the streams say where nothing happens."""
    return [text_of(stream) for stream in begin(server.wait_ready())]


def begin(port: int) -> list[Stream]:
    return [
        Stream(port, [1 + number, 2, 3], TOKENS, ignore_eos=True, **(DRAWN if number % 2 else {}))
        for number in range(NUM_STREAMS)
    ]


def serving(port: int) -> int:
    ready: int = get(port, "/ready")[1].get("replicas", {}).get("ready", 0)
    return ready


def page(port: int) -> str:
    """The metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text: str = answer.read().decode()
    return text


def admin(port: int, method: str, path: str, body: Any = None) -> str:
    """What the admin pages answer; the status is 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    content = None if body is None else json.dumps(body)
    connection.request(method, f"/admin/replicas{path}", content, headers)
    response = connection.getresponse()
    answer = response.read().decode()
    connection.close()
    assert response.status == 200, answer
    return answer


def shown(port: int) -> list[dict[str, Any]]:
    """All replicas."""
    replicas: list[dict[str, Any]] = json.loads(admin(port, "GET", ""))["replicas"]
    return replicas


def live_at(port: int, replica: int) -> int:
    """Streams that a replica has."""
    return next(one["num_live"] for one in shown(port) if one["number"] == replica)


def events_of(port: int, method: str, path: str = "", body: Any = None) -> list[dict[str, Any]]:
    """Changes the replicas: how it gets on."""
    lines = admin(port, method, path, body).split("\n\n")
    return [json.loads(line[len("data: ") :]) for line in lines if line.startswith("data: ")]


def changed(port: int, method: str, path: str = "", body: Any = None) -> dict[str, Any]:
    """The same; the last event."""
    return events_of(port, method, path, body)[-1]


def change(port: int, method: str, path: str = "") -> str:
    """The same; the last state of the one that is changed."""
    state: str = changed(port, method, path)["state"]
    return state


def rank_of(server: ServerProcess, replica: int) -> int:
    """The process of a replica."""
    return next(pid for pid in server.ranks() if is_called(pid, f"scheduler-R{replica}"))


@pytest.mark.parametrize(
    ("replica", "end", "reason"),
    [
        (1, signal.SIGKILL, "was killed by SIGKILL"),
        (2, signal.SIGSTOP, "gave no sign of life for 7 s"),
    ],
)
def test_streams_of_a_lost_replica_go_on_elsewhere(
    server: ServerProcess,
    undisturbed: list[str],
    replica: int,
    end: signal.Signals,
    reason: str,
) -> None:
    port = server.wait_ready()
    rank = rank_of(server, replica)
    streams: list[Stream] = []

    def holds_streams() -> bool:
        """On a busy machine they may have ended before this test gets its turn."""
        streams[:] = begin(port)
        until(lambda: live_at(port, replica) > 0)
        os.kill(rank, signal.SIGSTOP)
        if live_at(port, replica) > 0:
            return True
        os.kill(rank, signal.SIGCONT)
        assert [text_of(stream) for stream in streams] == undisturbed
        return False

    until(holds_streams)
    os.kill(rank, end)
    # Each is answered while the replica is away: no other one may say less than a whole text.
    assert [text_of(stream) for stream in streams] == undisturbed
    server.wait_for_line(rf"replica {replica}: [1-9]\d* requests go on elsewhere")
    server.wait_for_line(rf"replica {replica} died: the engine process .*{reason}")
    server.wait_for_line(rf"replica {replica} is ready again")
    until(lambda: serving(port) == 3)
    assert not alive(rank)


def test_replicas_come_and_go_under_streams(server: ServerProcess, undisturbed: list[str]) -> None:
    port = server.wait_ready()
    streams: list[Stream] = []
    for number in range(10):
        if not any(stream.alive for stream in streams):
            streams += begin(port)
        assert change(port, "DELETE", f"/{number}") == "removed"
        assert change(port, "POST") == "ready"
    texts = [text_of(stream) for stream in streams]
    assert texts == undisturbed * (len(texts) // NUM_STREAMS)
    assert serving(port) == 3
    assert change(port, "POST", "/12/restart?drain=0.2") == "ready"


def test_one_that_is_added_gets_what_waits(
    tiny_model: Path, tmp_path: Path, undisturbed: list[str]
) -> None:
    flags = ("--device", "cpu", "--admin-api-key", KEY, "--max-running", "4", "--threads", "1")
    server = ServerProcess(tiny_model, tmp_path, *flags, program=PROGRAM)
    port = server.wait_ready()
    streams = begin(port)  # of which 4 run
    until(lambda: live_at(port, 0) == NUM_STREAMS)
    assert change(port, "POST") == "ready"
    assert [text_of(stream) for stream in streams] == undisturbed
    metrics = page(port)
    assert re.search(r'replica_decisions_total{.*reason="relief",replica="1"}', metrics), metrics
    server.signal(signal.SIGTERM)
    assert server.wait() == 0, server.output


def test_all_are_replaced_by_another_revision_under_streams(
    server: ServerProcess,
    undisturbed: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    port = server.wait_ready()
    folder = tmp_path_factory.mktemp("revisions")
    other = make_tiny_model(folder / "next", seed=1)
    alien = make_tiny_model(folder / "alien", template="{{ messages }}")
    small = make_tiny_model(folder / "small", max_position=64)
    for model, why in (
        (folder / "nowhere", "there is no model"),
        (alien, "has another chat template than the model that is served; nothing has changed"),
        (small, "has a context of 64 tokens, and requests of 16384 are served; nothing has"),
    ):
        assert why in changed(port, "POST", "/replace", {"model": str(model)})["reason"]
    texts: list[list[str]] = []

    def load() -> None:
        """One batch of streams after the other."""
        while not over.is_set():
            texts.append([text_of(stream) for stream in begin(port)])

    over = threading.Event()
    loading = threading.Thread(target=load, daemon=True)
    loading.start()
    until(lambda: sum(one["num_live"] for one in shown(port)) > 0)
    last = changed(port, "POST", "/replace", {"model": str(other)})
    over.set()
    loading.join(DEADLINE)
    assert not loading.is_alive()
    assert (last["state"], last["model"]) == ("replaced", str(other))
    new = [text_of(stream) for stream in begin(port)]
    # Each stream is wholly of one revision, and there were some of both.
    assert not set(new) & set(undisturbed)
    for batch in texts:
        for text, one, two in zip(batch, undisturbed, new, strict=True):
            assert text in (one, two)
    assert set(sum(texts, [])) & set(undisturbed)
    assert serving(port) == 3
    assert {one["model"] for one in shown(port)} == {str(other)}
