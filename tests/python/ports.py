"""Ports for programs that have to be told one before they listen."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from random import SystemRandom

LOOPBACK = "127.0.0.1"
LEAST = 20_000  # below that are those of Ray's workers

_claims: list[socket.socket] = []  # they last as long as this process


def free_port(address: str = LOOPBACK, count: int = 1) -> int:
    """A port that is free at the address, with those after it `count` in all. It stays free until
    it is used: it is none of those that the kernel gives to whoever connects or binds port 0, and
    no other process of tests is given it.
    """
    dealt_out = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    end = dealt_out if dealt_out > LEAST + 1000 else 2**16  # some kernels deal out nearly all
    while True:
        first = SystemRandom().randrange(LEAST, end - count)
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for port in range(first, first + count):
                probes.enter_context(socket.socket()).bind((address, port))
                claim = socket.socket(socket.AF_UNIX)
                claim.bind(f"\0minisgl-test-port-{port}")
                _claims.append(claim)
            return first
