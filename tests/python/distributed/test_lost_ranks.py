"""Ranks that share memory while one of them is killed or stopped: who is blamed, how soon, and what
is left behind.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import pytest

from tests.python.launch.servers import named_memory
from tests.python.waiting import PATIENCE

RANK = """
import sys, torch
from minisgl import _native
name, rank, size, timeout = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
print("there", flush=True)
sys.stdin.readline()  # until all are there: imports take their time
comm = _native.ShmCommunicator(name, rank=rank, size=size, timeout=timeout)
x = torch.zeros(100_000)
print("ready", flush=True)
try:
    while True:
        comm.all_reduce(x)
except _native.RankFailure as failure:
    print(failure.rank, failure, flush=True)
"""


def expect_line(rank: subprocess.Popen[str], line: str) -> None:
    assert rank.stdout is not None
    assert rank.stdout.readline() == line + "\n"


def start(size: int, timeout: float, name: str = "") -> list[subprocess.Popen[str]]:
    name = name or f"test-{random.getrandbits(64):x}"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, name, str(rank), str(size), str(timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    for rank in ranks:
        expect_line(rank, "there")
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write("go\n")
        rank.stdin.flush()
    for rank in ranks:
        expect_line(rank, "ready")
    time.sleep(0.05)  # into the midst of a sum
    return ranks


def end(ranks: list[subprocess.Popen[str]]) -> None:
    for rank in ranks:
        rank.kill()
        rank.communicate()


@pytest.mark.parametrize(
    ("sent", "timeout", "message"),
    [
        (signal.SIGKILL, 3600.0, "1 rank 1 (process {pid}) has died"),
        (
            signal.SIGSTOP,
            2.0,
            "1 rank 1 (process {pid}) didn't come to a collective within 2 s and is stopped",
        ),
    ],
)
def test_the_others_are_told_who_is_lost(
    sent: signal.Signals, timeout: float, message: str
) -> None:
    ranks = start(3, timeout)
    try:
        ranks[1].send_signal(sent)
        for survivor in (ranks[0], ranks[2]):
            said, _ = survivor.communicate(timeout=PATIENCE)
            assert said == message.format(pid=ranks[1].pid) + "\n"
            assert survivor.returncode == 0
    finally:
        end(ranks)
    assert named_memory() == []


def test_nothing_is_left_of_ranks_that_are_all_killed() -> None:
    name = f"test-{random.getrandbits(64):x}"
    ranks = start(2, 60.0, name)
    assert named_memory() == []
    end(ranks)
    with open("/proc/net/unix") as sockets:
        assert name not in sockets.read()
