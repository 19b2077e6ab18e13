"""What may happen to a replica, at each moment of its life, under clients that count their tokens.

By default the cells of DEFAULT run. MINISGL_FAILURE_MATRIX=FILE runs all, in about ten minutes, and
appends to FILE a row per cell (of the table in bench/HISTORY.md). Recording graphs is a moment that
only GPUs have: bench/failover.py --again recording is for that.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.python.launch.servers import until
from tests.python.running.accounts import Account, CountedStream, Receipt, receipt
from tests.python.running.house import House, open_house

REPORT = os.environ.get("MINISGL_FAILURE_MATRIX", "")
NUM_STREAMS = 9
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
CUT_SECONDS = 7.5  # a host is missed after 6
SLOW_SECONDS = "3"
SLOW = """
trap 'kill -CONT $0; exit' TERM
while kill -STOP $0; do sleep 0.09; kill -CONT $0; sleep 0.01; done
"""
# Every second stream is drawn, with penalties: both go on from where the stream is.
DRAWN = {"temperature": 0.8, "seed": 7, "frequency_penalty": 0.3, "repetition_penalty": 1.1}


@dataclass(frozen=True)
class Load:
    """What clients ask for."""

    prompt_tokens: int
    answer_tokens: int

    def begin(self, port: int, count: int = NUM_STREAMS) -> list[CountedStream]:
        return [
            CountedStream(
                port,
                [1 + (number + index) % 200 for index in range(self.prompt_tokens)],
                self.answer_tokens,
                **(DRAWN if number % 2 else {}),
            )
            for number in range(count)
        ]


SHORT = Load(3, 2000)
LONG = Load(4000, 600)


# --- what happens: each is a context, in which it has happened and at whose end it is over


@contextlib.contextmanager
def gets(house: House, rank: int, number: signal.Signals) -> Iterator[None]:
    os.kill(rank, number)
    yield


@contextlib.contextmanager
def is_refused_memory(house: House, rank: int) -> Iterator[None]:
    """The rank gets no more than it has."""
    pages = int(Path(f"/proc/{rank}/statm").read_text().split()[0])
    now = pages * resource.getpagesize()
    resource.prlimit(rank, resource.RLIMIT_AS, (now, resource.RLIM_INFINITY))
    yield
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(rank, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)


@contextlib.contextmanager
def has_no_memory(house: House, rank: int) -> Iterator[None]:
    """The kernel ends the rank: it is the largest process where another takes all there is."""
    group = MEMORY_GROUPS / f"minisgl-{rank}"
    members = group / "cgroup.procs"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text("65536")
    members.write_text(str(rank))
    # What the rank itself touches next may be what it has touched before. This one ends as it does.
    with subprocess.Popen(["sh", "-c", f"echo $$ >{members}; exec tail /dev/zero"]):
        yield
    until(lambda: not members.read_text())
    group.rmdir()


@contextlib.contextmanager
def is_slow(house: House, rank: int) -> Iterator[None]:
    """The rank gets a part of the time, for a while."""
    with subprocess.Popen(["timeout", SLOW_SECONDS, "bash", "-c", SLOW, str(rank)]) as holds_back:
        yield
        holds_back.terminate()


@contextlib.contextmanager
def host_is_lost(house: House, rank: int) -> Iterator[None]:
    house.guest.kill()
    house.guest.wait()
    yield


@contextlib.contextmanager
def network_is_cut(house: House, rank: int) -> Iterator[None]:
    """Nothing is said, and nothing arrives, until the host is missed."""
    assert house.network is not None
    end = time.monotonic() + CUT_SECONDS
    house.network.link("down")
    yield
    time.sleep(max(0.0, end - time.monotonic()))
    house.network.link("up")


@dataclass(frozen=True)
class Fault:
    happens: Callable[[House, int], contextlib.AbstractContextManager[None]]
    hosted: bool = False  # to a replica of the other host
    heals: bool = False  # the replica may live on


FAULTS = {
    "SIGKILL": Fault(lambda house, rank: gets(house, rank, signal.SIGKILL)),
    "SIGTERM": Fault(lambda house, rank: gets(house, rank, signal.SIGTERM)),
    "SIGSTOP": Fault(lambda house, rank: gets(house, rank, signal.SIGSTOP)),
    "out of memory": Fault(has_no_memory),
    "memory refused": Fault(is_refused_memory, heals=True),
    "network cut": Fault(network_is_cut, hosted=True),
    "host lost": Fault(host_is_lost, hosted=True),
    "slow": Fault(is_slow, heals=True),
}


# --- when: each begins streams and lets the fault happen in the midst of them


@dataclass
class Cell:
    """One fault at one moment."""

    house: House
    fault: Fault
    undisturbed: dict[Load, list[Receipt]]
    account: Account = field(default_factory=Account)
    ranks: set[int] = field(default_factory=set)  # processes that it happened to
    change: Callable[[], str] | None = None  # that was under way

    def victim(self) -> int:
        return self.house.replica(hosted=self.fault.hosted)

    def serve(self, load: Load) -> list[CountedStream]:
        return load.begin(self.house.port)

    def strike(self, replica: int, load: Load, streams: list[CountedStream]) -> None:
        """It happens, with these streams on their way; more come while it is so."""
        assert not streams or any(stream.alive for stream in streams), "too late"
        rank = self.house.rank(replica)
        self.ranks.add(rank)
        with self.fault.happens(self.house, rank):
            later = SHORT.begin(self.house.port)
            self.account.add(streams, self.undisturbed[load] if streams else [])
            self.account.add(later, self.undisturbed[SHORT])


def idle(cell: Cell) -> None:
    cell.strike(cell.victim(), SHORT, [])


def prefill(cell: Cell) -> None:
    victim = cell.victim()
    streams = cell.serve(LONG)
    until(lambda: cell.house.figures()[victim]["waiting_tokens"])
    cell.strike(victim, LONG, streams)


def decode(cell: Cell) -> None:
    victim = cell.victim()
    streams = cell.serve(SHORT)
    until(lambda: all(stream.has_tokens for stream in streams))
    cell.strike(victim, SHORT, streams)


def replaying(cell: Cell) -> None:
    """Another replica is killed, whose streams come to this one."""
    victim = cell.victim()
    other = next(number for number in cell.house.ready() if number != victim)
    streams = cell.serve(LONG)

    def decodes() -> bool:
        figures = cell.house.figures()[other]
        return figures["num_live"] > 1 and not figures["waiting_tokens"]

    until(decodes)
    cell.ranks.add(cell.house.rank(other))
    os.kill(cell.house.rank(other), signal.SIGKILL)
    until(lambda: cell.house.figures()[victim]["num_replaying"])
    cell.strike(victim, LONG, streams)


def draining(cell: Cell) -> None:
    victim = cell.victim()
    streams = cell.serve(LONG)
    until(lambda: cell.house.figures()[victim]["num_live"])
    cell.change = cell.house.change_later("DELETE", f"/{victim}?drain=60")
    until(lambda: cell.house.figures()[victim]["state"] == "draining")
    cell.strike(victim, LONG, streams)


def adding(cell: Cell) -> None:
    assert cell.house.change("DELETE", f"/{cell.victim()}") == "removed"
    known = set(cell.house.figures())
    cell.change = cell.house.change_later("POST")
    until(lambda: set(cell.house.figures()) - known)
    (added,) = set(cell.house.figures()) - known
    cell.strike(added, SHORT, cell.serve(SHORT))


MOMENTS = {one.__name__: one for one in (idle, prefill, decode, replaying, draining, adding)}
DEFAULT = {
    ("memory refused", "idle"),
    ("host lost", "decode"),
    ("network cut", "decode"),
    ("SIGKILL", "replaying"),
    ("SIGTERM", "draining"),
    ("SIGKILL", "adding"),
}


@pytest.fixture(scope="module")
def house(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with open_house(tiny_model, tmp_path_factory.mktemp("house")) as house:
        yield house


@pytest.fixture(scope="module")
def undisturbed(house: House) -> dict[Load, list[Receipt]]:
    """What the streams are where nothing happens."""
    return {load: [receipt(one) for one in load.begin(house.port)] for load in (SHORT, LONG)}


CELLS = [
    (fault, moment)
    for moment in MOMENTS
    for fault in FAULTS
    if REPORT or (fault, moment) in DEFAULT
]


@pytest.mark.parametrize(("fault", "moment"), CELLS)
def test_clients_see_nothing(
    house: House, undisturbed: dict[Load, list[Receipt]], fault: str, moment: str
) -> None:
    if fault == "network cut" and house.network is None:
        pytest.skip("needs the right to make network namespaces")
    if fault == "out of memory" and not os.access(MEMORY_GROUPS / "cgroup.procs", os.W_OK):
        pytest.skip("needs the right to make control groups of memory (version 1)")
    for right in (one for receipts in undisturbed.values() for one in receipts):
        assert (right.fault, right.finish, right.counted) == ("", "length", len(right.tokens))
    files, lines = house.num_files(), len(house.server.lines)
    cell = Cell(house, FAULTS[fault], undisturbed)
    began = time.monotonic()
    MOMENTS[moment](cell)
    house.return_host()
    changed = cell.change() if cell.change is not None else ""
    back = house.recover()
    house.refill()
    # All serve again, with nothing left of what was.
    cell.account.add(SHORT.begin(house.port), undisturbed[SHORT])
    left = house.left_behind(cell.ranks, files)
    output = house.server.lines[lines:]
    said = "; ".join(
        re.sub(r".*(?=replica \d+)", "", line)
        for line in output
        if re.search(r"replica \d+ (died|can't)|begins again", line)
    )
    if REPORT:
        account = cell.account
        with open(REPORT, "a") as table:
            table.write(
                f"| {fault} | {moment} | {account.streams} | {account.lost} | {account.repeated} "
                f"| {account.wrong + len(account.faults)} | {account.longest_gap:.1f} s "
                f"| {back:.1f} s | {', '.join(left) or 'nothing'} "
                f"| {said} {changed} {time.monotonic() - began:.1f} s |\n"
            )
    assert cell.account.is_exact, (cell.account, output)
    assert left == []
    # A process that gets no memory before it has begun can say no more than where that was.
    assert fault == "memory refused" or "Traceback" not in "\n".join(output), output
