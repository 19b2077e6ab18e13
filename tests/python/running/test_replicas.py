"""A server of three replicas under streams: none of them notices which replica is lost, or how."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.python.launch.servers import ServerProcess, Stream, alive, get, is_called, until
from tests.python.running.conftest import PROGRAM
from tests.python.running.test_ranks import text_of

NUM_STREAMS = 16
TOKENS = 800
# Every second one is drawn, with penalties: both go on from where the stream is.
DRAWN = {"temperature": 0.8, "seed": 7, "frequency_penalty": 0.3, "repetition_penalty": 1.1}


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    flags = ("--replicas", "3", "--device", "cpu")
    server = ServerProcess(tiny_model, tmp_path_factory.mktemp("server"), *flags, program=PROGRAM)
    port = server.wait_ready()
    until(lambda: serving(port) == 3)
    yield server
    server.signal(signal.SIGTERM)
    assert server.wait() == 0, server.output
    assert "Traceback" not in server.output


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


def rank_of(server: ServerProcess, replica: int) -> int:
    """The process of a replica."""
    return next(pid for pid in server.ranks() if is_called(pid, f"scheduler-R{replica}"))


@pytest.mark.parametrize(
    ("replica", "end", "reason"),
    [
        (1, signal.SIGKILL, "was killed by SIGKILL"),
        (0, signal.SIGTERM, "ended with status"),
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
    streams = begin(port)
    for stream in streams:
        stream.wait_events(1)
    os.kill(rank, end)
    # Each is answered while the replica is away: no other one may say less than a whole text.
    assert [text_of(stream) for stream in streams] == undisturbed
    server.wait_for_line(rf"replica {replica}: [1-9]\d* requests go on elsewhere")
    server.wait_for_line(rf"replica {replica} died: the engine process .*{reason}")
    server.wait_for_line(rf"replica {replica} is ready again")
    until(lambda: serving(port) == 3)
    assert not alive(rank)
