"""Stops one thread of a process: what a deadlock or a hung device looks like from outside. Every
other thread of the process goes on.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

from tests.python.waiting import PATIENCE

PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
WALL = 0x40000000  # waitpid() for threads, too

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def stall_thread(process: int, name: str) -> None:
    """Returns when the thread of that name stands still; it does so until the process is killed.
    The process is a descendant of this one.
    """
    tasks = Path(f"/proc/{process}/task")
    thread = next(int(t.name) for t in tasks.iterdir() if (t / "comm").read_text().strip() == name)
    stalled = threading.Event()
    errors: list[OSError] = []

    def hold() -> None:  # the thread that traces must also wait, up to the traced thread's end
        for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
            if _libc.ptrace(request, thread, None, None) != 0:
                errors.append(OSError(ctypes.get_errno(), f"ptrace of thread {thread}"))
                stalled.set()
                return
        os.waitpid(thread, WALL)
        stalled.set()
        os.waitpid(thread, WALL)

    threading.Thread(target=hold, daemon=True).start()
    assert stalled.wait(PATIENCE)
    if errors:
        raise errors[0]
