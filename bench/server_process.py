"""A server in a process of its own, for as long as a measurement takes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Names of a rank's threads that compute, as its native code gives them.
ENGINE_THREADS = {"minisgl-engine", "minisgl-follow", "minisgl-compute", "minisgl-watch"}


ADMIN_KEY = "for the benchmark"


@dataclass(frozen=True)
class RunningServer:
    url: str
    pid: int
    seconds_to_ready: float  # from the command to a 200 of /ready

    def memory(self) -> dict[str, tuple[int, int]]:
        """Process -> (RSS, PSS) in bytes, of the server and its children. PSS counts a page that
        several processes share in parts, so that the sum is what all of them take.
        """
        found = {}
        for pid in (self.pid, *self.children()):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            rss, pss = (
                1024 * int(re.search(rf"^{name}:\s+(\d+) kB", rollup, re.M)[1])  # type: ignore[index]
                for name in ("Rss", "Pss")
            )
            name = "server" if pid == self.pid else "engine" if pid in self.ranks() else "template"
            found[f"{name} {pid}"] = (rss, pss)
        return found

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time so far of the server's process ("server"), and in the engine's process of
        the threads that compute ("engine") and of those that talk ("messages").
        """
        seconds = dict.fromkeys(("server", "messages", "engine"), 0.0)
        for pid in (self.pid, *self.children()):
            for task in Path(f"/proc/{pid}/task").iterdir():
                kind = "server"
                if pid != self.pid:
                    thread = (task / "comm").read_text().strip()
                    kind = "engine" if thread in ENGINE_THREADS else "messages"
                seconds[kind] += int((task / "schedstat").read_text().split()[0]) / 1e9
        return seconds

    def is_ready(self) -> bool:
        """Whether GET /ready answers 200."""
        return _is_ready(int(self.url.rpartition(":")[2]))

    def change_replicas(self, method: str, path: str = "") -> None:
        """Waits until it is done, of a server with ADMIN_KEY. RuntimeError where it fails."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"))
        headers = {"authorization": f"Bearer {ADMIN_KEY}", "content-type": "application/json"}
        connection.request(method, f"/admin/replicas{path}", "{}", headers)
        answer = connection.getresponse()
        events = answer.read().decode()
        connection.close()
        if answer.status != 200 or '"failed"' in events:
            raise RuntimeError(f"{method} /admin/replicas{path}: {answer.status} {events}")

    def is_whole(self, replicas: int) -> bool:
        """Whether all replicas serve, or the engine where there is one."""
        ready = json.loads(self.get("/ready"))
        serving: int = ready.get("replicas", {}).get("ready", int("status" in ready))
        return serving == replicas

    def wait_whole(self, replicas: int) -> None:
        """Until they do."""
        while not self.is_whole(replicas):
            time.sleep(0.005)

    def get(self, path: str) -> str:
        """The body of a GET."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def ranks(self) -> list[int]:
        """Process ids of the ranks, in their order: they are started one after the other."""
        return sorted(
            pid
            for pid in self.children()
            if b"minisgl-TP" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )

    def rank(self, number: int, replica: int | None = None) -> int:
        """The process of a rank, of a replica where there are several."""
        name = f"minisgl-TP{number}-scheduler" + ("" if replica is None else f"-R{replica}")
        return next(
            pid
            for pid in self.children()
            if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        )

    def children(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in children.split()]


@contextlib.contextmanager
def serving(
    command: Sequence[str],
    *,
    deadline: float = 120.0,
    quiet: bool = True,
    on_begin: Callable[[int], None] = lambda pid: None,
) -> Iterator[RunningServer]:
    """`command --port PORT`, from when GET /ready answers 200 to the end of the block. `on_begin`
    gets its process id, at once.
    """
    port = _free_port()
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, "--port", str(port)], stderr=subprocess.DEVNULL if quiet else None
    )
    try:
        on_begin(process.pid)
        while not _is_ready(port):
            if process.poll() is not None:
                raise SystemExit(f"the server ended with status {process.returncode}")
            if time.monotonic() - began > deadline:
                raise SystemExit(f"the server was not ready within {deadline:g} s")
            time.sleep(0.005)
        seconds = time.monotonic() - began
        yield RunningServer(f"http://127.0.0.1:{port}", process.pid, seconds)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def processor_seconds(pid: int) -> float:
    """Processor time so far of a process and those that it has started."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user, system
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return seconds + sum(processor_seconds(int(child)) for child in children.split())


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """`command` on one core only."""
    return ["taskset", "-c", str(core), *command]


def cores() -> list[int]:
    """Those that this process may use."""
    return sorted(os.sched_getaffinity(0))
