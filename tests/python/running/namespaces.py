"""A network namespace that stands for another host."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

# Tests run in several processes at once, each of which has a network of its own: four of the
# addresses that are kept for such purposes (RFC 2544).
NETWORK = int(ipaddress.IPv4Address("198.18.0.0")) + 4 * (os.getpid() % 2**15)
SERVER_ADDRESS, NODE_ADDRESS = (str(ipaddress.IPv4Address(NETWORK + end)) for end in (1, 2))


class NoNamespaces(Exception):  # noqa: N818
    """This machine gives none. The sentence says what is missing."""


@dataclass
class Network:
    """A namespace with a link to this one."""

    name: str

    def link(self, state: str) -> None:
        """`state`: up or down. Down, nothing is said and nothing arrives."""
        ip("-n", self.name, "link", "set", "eth-far", state)

    def command(self, *words: str) -> list[str]:
        """The command line that runs these words there."""
        return ["ip", "netns", "exec", self.name, *words]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def open_network() -> Iterator[Network]:
    """SERVER_ADDRESS is here and NODE_ADDRESS there. Raises NoNamespaces."""
    if not shutil.which("ip"):
        raise NoNamespaces("needs the command ip (Debian: iproute2)")
    name, near = f"minisgl-{os.getpid()}", f"mg{os.getpid()}"
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        raise NoNamespaces(
            f"needs the right to make network namespaces: {error.stderr.strip()}"
        ) from None
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
