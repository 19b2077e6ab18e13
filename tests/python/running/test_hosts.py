"""Ranks on two hosts: this one, and a network namespace that stands for another."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.python.launch.servers import ServerProcess, Stream, alive, get, until
from tests.python.ports import free_port
from tests.python.running.conftest import PROGRAM
from tests.python.running.test_ranks import text_of
from tests.python.waiting import PATIENCE

SECRET = {"MINISGL_DIST_SECRET": "known to two hosts"}
# Tests run in several processes at once, each of which has a network of its own: four of the
# addresses that are kept for such purposes (RFC 2544).
NETWORK = int(ipaddress.IPv4Address("198.18.0.0")) + 4 * (os.getpid() % 2**15)
SERVER_ADDRESS, NODE_ADDRESS = (str(ipaddress.IPv4Address(NETWORK + end)) for end in (1, 2))


@dataclass
class Network:
    """A namespace with a link to this one."""

    name: str

    def link(self, state: str) -> None:
        ip("-n", self.name, "link", "set", "eth-far", state)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def network() -> Iterator[Network]:
    if not shutil.which("ip"):
        pytest.skip("needs the command ip (Debian: iproute2)")
    name, near = f"minisgl-{os.getpid()}", f"mg{os.getpid()}"
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs the right to make network namespaces: {error.stderr.strip()}")
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", "eth-far", "netns", name)
        ip("addr", "add", f"{SERVER_ADDRESS}/30", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", name, "addr", "add", f"{NODE_ADDRESS}/30", "dev", "eth-far")
        ip("-n", name, "link", "set", "eth-far", "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield Network(name)
        ip("link", "del", near)  # with the namespace it goes only after a while
    finally:
        ip("netns", "del", name)


class Hosts:
    """Host 0 here and host 1 in the namespace, two ranks each."""

    def __init__(self, network: Network, model: Path, folder: Path) -> None:
        self._network = network
        self._model = model
        self._folder = folder
        self._flags = ("--tp", "4", "--nnodes", "2", "--startup-timeout", "60")
        self._flags += ("--dist-init-addr", f"{SERVER_ADDRESS}:{free_port(SERVER_ADDRESS, 3)}")
        self.server = ServerProcess(
            model, folder / "0", *self._flags, program=PROGRAM, environment=SECRET
        )
        self.nodes: list[subprocess.Popen[str]] = []

    def start_node(self, secret: str = SECRET["MINISGL_DIST_SECRET"]) -> subprocess.Popen[str]:
        directory = self._folder / "1"
        directory.mkdir(exist_ok=True)
        command = ["ip", "netns", "exec", self._network.name, sys.executable, *PROGRAM]
        node = subprocess.Popen(
            [*command, "--node-rank", "1", *self._flags, str(self._model)],
            stderr=(self._folder / f"node-{len(self.nodes)}").open("w"),
            text=True,
            env={**os.environ, "TMPDIR": str(directory), "MINISGL_DIST_SECRET": secret},
        )
        self.nodes.append(node)
        return node

    def node_says(self, number: int) -> str:
        return (self._folder / f"node-{number}").read_text()

    def end(self) -> None:
        ranks = self.server.children()
        if self.server.process.poll() is None:
            self.server.signal(signal.SIGTERM)
            assert self.server.wait() == 0, self.server.output
        for node in self.nodes:
            node.wait(PATIENCE)
        until(lambda: not any(map(alive, ranks)))
        assert self.server.files() == []
        assert os.listdir(self._folder / "1") == []


@pytest.fixture
def hosts(network: Network, tiny_model: Path, tmp_path: Path) -> Iterator[Hosts]:
    hosts = Hosts(network, tiny_model, tmp_path)
    try:
        yield hosts
        hosts.end()
    finally:
        for node in hosts.nodes:  # a process would keep the namespace, and with it the address
            node.kill()


def listening_addresses(pid: int) -> set[str]:
    """IPv4 addresses that a process listens at."""
    own = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        own.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in own:
            found.add(socket.inet_ntoa(bytes.fromhex(fields[1].split(":")[0])[::-1]))
    return found


def test_a_model_over_two_hosts_survives_the_loss_of_one(hosts: Hosts, network: Network) -> None:
    stranger = hosts.start_node("a secret of somebody else")
    hosts.server.wait_for_line("turned away a connection from .*MINISGL_DIST_SECRET differs")
    stranger.terminate()
    stranger.wait(PATIENCE)

    hosts.start_node()
    port = hosts.server.wait_ready()
    assert "ranks talk through TCP" in hosts.server.output
    assert listening_addresses(hosts.server.process.pid) == {"127.0.0.1", SERVER_ADDRESS}
    expected = text_of(Stream(port, [5, 6, 7], 1500))

    # The host dies.
    stream = Stream(port, [5, 6, 7], 1500)
    stream.wait_events(1)
    hosts.nodes[1].kill()
    hosts.server.wait_for_line("the engine died: host 1 was lost: the peer closed the connection")
    hosts.start_node()
    assert text_of(stream) == expected

    # The network between them is cut for a while: nothing is said, and nothing arrives.
    stream = Stream(port, [5, 6, 7], 1500)
    stream.wait_events(1)
    network.link("down")
    hosts.server.wait_for_line("the engine died: host 1 was lost: it gave no sign of life for 6 s")
    until(lambda: get(port, "/health")[1].get("phase") == "waiting for hosts [1]")
    until(lambda: "host 0 is lost" in hosts.node_says(2))
    network.link("up")
    assert text_of(stream) == expected
    assert hosts.server.output.count("the engine died") == 2


def test_a_host_that_never_comes_ends_the_start(
    network: Network, tiny_model: Path, tmp_path: Path
) -> None:
    flags = ("--tp", "2", "--nnodes", "2", "--startup-timeout", "2")
    address = f"{SERVER_ADDRESS}:{free_port(SERVER_ADDRESS, 3)}"
    server = ServerProcess(
        tiny_model,
        tmp_path / "0",
        *(*flags, "--dist-init-addr", address),
        program=PROGRAM,
        environment=SECRET,
    )
    assert server.wait() == 1
    assert "waiting for hosts [1]" in server.lines[-1]
    assert server.files() == []


def test_a_server_that_never_comes_ends_the_host(
    network: Network, tiny_model: Path, tmp_path: Path
) -> None:
    address = f"{SERVER_ADDRESS}:{free_port(SERVER_ADDRESS, 3)}"
    node = ServerProcess(
        tiny_model,
        tmp_path / "1",
        *("--tp", "2", "--nnodes", "2", "--node-rank", "1", "--startup-timeout", "1"),
        *("--dist-init-addr", address),
        program=PROGRAM,
        environment=SECRET,
    )
    assert node.wait() == 1
    assert f"host 0 can't be reached at {address} within 1 s" in node.lines[-1]
