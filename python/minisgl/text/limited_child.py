"""What a limited process does besides its work: it takes messages from its standard input and
answers them on its standard output, each behind its length, with a limit of memory. See
limited_process.py for the parent's side.

It imports little, so that the process starts fast and stays small.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import BinaryIO

from setproctitle import setproctitle

from minisgl.children import die_with_parent

LENGTH_BYTES = 4


def with_length(data: bytes) -> bytes:
    """A message's frame."""
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def serve(memory_limit: int, answer: Callable[[bytes], bytes]) -> None:
    """Answers messages until the parent closes its end. `answer` makes a frame of a message;
    `memory_limit` is in bytes of address space. The process's argument is its name in the list of
    processes. An empty frame says that the process is there: what takes long from then on is the
    work.
    """
    die_with_parent(signal.SIGKILL)
    setproctitle(sys.argv[1])
    inbox = os.fdopen(os.dup(0), "rb")
    outbox = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # nothing else that is written is an answer
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _write(outbox, with_length(b""))
    while data := inbox.read(int.from_bytes(inbox.read(LENGTH_BYTES), "little")):
        _write(outbox, answer(data))


def _write(outbox: BinaryIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[outbox.write(rest) or 0 :]
