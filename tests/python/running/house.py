"""A server of two replicas here and one on a host that has joined, to which things happen."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.python.launch.servers import (
    DEADLINE,
    ServerProcess,
    alive,
    is_called,
    named_memory,
    processes,
    until,
)
from tests.python.ports import free_port
from tests.python.running.conftest import PROGRAM
from tests.python.running.measures import process_size, until_idle
from tests.python.running.namespaces import (
    SERVER_ADDRESS,
    Network,
    NoNamespaces,
    open_network,
)

KEY = "for operators"
SECRETS = {"MINISGL_DIST_SECRET": "known to two hosts", "MINISGL_ADMIN_API_KEY": KEY}
NUM_REPLICAS = 3
MOST_RESTARTS = 2  # of a replica, before it is replaced: the pause before a restart doubles
SPARE_FILES = 6  # connections that have just ended, and those of a client that asks
# Long prompts are computed in many steps, each time anew.
FLAGS = ("--device", "cpu", "--threads", "1", "--disable-prefix-cache")
FLAGS += ("--kv-cache-tokens", "96K", "--max-batch-tokens", "64", "--routing", "round")


class House:
    """The server, and the host that has joined it."""

    def __init__(self, model: Path, folder: Path, network: Network | None) -> None:
        """Without a network the other host is a process beside the server."""
        self.network = network
        self._model = model
        self._folder = folder
        host = SERVER_ADDRESS if network else "127.0.0.1"
        self._address = f"{host}:{free_port(host)}"
        flags = ("--replicas", "2", "--dist-init-addr", self._address, *FLAGS)
        self.server = ServerProcess(
            model, folder / "server", *flags, program=PROGRAM, environment=SECRETS
        )
        self.guests: list[subprocess.Popen[bytes]] = []
        self.port = self.server.wait_ready()
        self.start_guest()
        self.server.wait_for_line(r"host \d+ is there")
        until(lambda: len(self.ready()) == 2)
        self.change("POST")

    # --- the host that has joined

    def start_guest(self) -> None:
        """The host joins, for the first time or again."""
        directory = self._folder / "guest"
        directory.mkdir(exist_ok=True)
        command = [sys.executable, *PROGRAM, "--join", self._address, *FLAGS, str(self._model)]
        with (self._folder / f"guest-{len(self.guests)}").open("w") as screen:
            guest = subprocess.Popen(
                self.network.command(*command) if self.network else command,
                stderr=screen,
                env={**os.environ, "TMPDIR": str(directory), **SECRETS},
            )
        self.guests.append(guest)

    @property
    def guest(self) -> subprocess.Popen[bytes]:
        return self.guests[-1]

    # --- what there is

    def figures(self) -> dict[int, dict[str, Any]]:
        """What the server says of each replica."""
        status, answer = self._ask("GET", "")
        assert status == 200, answer
        return {one["number"]: one for one in json.loads(answer)["replicas"]}

    def ready(self) -> list[int]:
        """Replicas that serve."""
        return [number for number, one in self.figures().items() if one["state"] == "ready"]

    def replica(self, *, hosted: bool) -> int:
        """The newest replica that the other host has, or one of this host."""
        found = [n for n, one in self.figures().items() if is_hosted(one) == hosted]
        return found[-1]

    def rank(self, replica: int) -> int:
        """The process of a replica, once there is one."""
        owners = {str(self.server.process.pid), str(self.guest.pid)}

        def found() -> int | None:
            for pid, (state, parent) in processes().items():
                if parent in owners and state != "Z" and is_called(pid, f"scheduler-R{replica}"):
                    return pid
            return None

        pid: int = until(found, lambda: f"replica {replica} has no process")
        return pid

    # --- what an operator does

    def change(self, method: str, path: str = "") -> str:
        """Changes the replicas; the last state of the one that is changed, "" where that is
        refused.
        """
        status, answer = self._ask(method, path)
        if status == 409:
            return ""
        assert status == 200, answer
        events = answer.split("\n\n")
        state: str = json.loads(events[-2].removeprefix("data: "))["state"]
        return state

    def change_later(self, method: str, path: str = "") -> Callable[[], str]:
        """Begins a change; what is returned waits for its last state."""
        states: list[str] = []
        thread = threading.Thread(
            target=lambda: states.append(self.change(method, path)), daemon=True
        )
        thread.start()

        def wait() -> str:
            thread.join(2 * DEADLINE)
            return states[0] if states else "no end"

        return wait

    def _ask(self, method: str, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2 * DEADLINE)
        headers = {"authorization": f"Bearer {KEY}"}
        with contextlib.closing(connection):
            connection.request(method, f"/admin/replicas{path}", headers=headers)
            response = connection.getresponse()
            return response.status, response.read().decode()

    # --- afterwards

    def return_host(self) -> None:
        """The host joins again, where it was lost."""
        if self.guest.poll() is not None:
            self.start_guest()

    def recover(self) -> float:
        """Waits until all replicas there are serve, which they do by themselves; seconds that this
        took.
        """
        began = time.monotonic()

        def whole() -> bool:
            return all(one["state"] == "ready" for one in self.figures().values())

        until(whole, lambda: f"{self.figures()}\n{self.server.output[-3000:]}")
        return time.monotonic() - began

    def refill(self) -> None:
        """As many replicas as at the beginning, none of which died too often."""
        for number, one in self.figures().items():
            if one["num_restarts"] > MOST_RESTARTS:
                assert self.change("POST", f"/{number}/restart") == "ready"
        while len(self.figures()) < NUM_REPLICAS:
            until(lambda: self.change("POST") == "ready")  # once the host is back, if it was away

    def left_behind(self, ranks: set[int], files: int) -> list[str]:
        """What is left of what was: `ranks`, which have ended or belong to a replica, and files of
        the server beyond so many.
        """
        until_idle(self.port)
        own = {self.rank(number) for number in self.figures()}
        found = [f"process {pid}" for pid in ranks - own if alive(pid)]
        live = [one["number"] for one in self.figures().values() if one["num_live"]]
        found += [f"a request of replica {number}" for number in live]
        if self.num_files() > files + SPARE_FILES:
            found.append(f"{self.num_files() - files} files")
        return found + named_memory()

    def num_files(self) -> int:
        """Files that the server has open."""
        return process_size(self.server.process.pid).num_files

    def end(self) -> None:
        """In order, and nothing is left."""
        ranks = [self.rank(number) for number in self.figures()]
        self.server.signal(signal.SIGTERM)
        assert self.server.wait() == 0, self.server.output
        assert self.guest.wait(DEADLINE) == 0, self.guest_output
        until(lambda: not any(map(alive, ranks)))
        assert self.server.files() == []
        assert os.listdir(self._folder / "guest") == []

    @property
    def guest_output(self) -> str:
        """What the host that has joined said at last."""
        return (self._folder / f"guest-{len(self.guests) - 1}").read_text()

    def kill(self) -> None:
        """At once, whatever runs."""
        for guest in self.guests:
            guest.kill()
        if self.server.process.poll() is None:
            self.server.signal(signal.SIGKILL)


def is_hosted(figures: dict[str, Any]) -> bool:
    return str(figures["place"]).startswith("host ")


@contextlib.contextmanager
def open_house(model: Path, folder: Path) -> Iterator[House]:
    """Three replicas that serve; at the end the server ends in order, and nothing of it is left."""
    with contextlib.ExitStack() as stack:
        network: Network | None = None
        with contextlib.suppress(NoNamespaces):
            network = stack.enter_context(open_network())
        house = House(model, folder, network)
        stack.callback(house.kill)
        yield house
        house.end()
