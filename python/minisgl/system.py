"""What a process needs of the system before it begins: standard streams, file descriptors, threads.
Libraries abort where they lack them; here it is a sentence. And the signals at which it ends.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import sys

MAX_OPEN_FILES = 65536  # that are asked for, as far as the hard limit allows
# Kept from connections, so that clients never hold what a dead engine needs to be started again.
# What the server, its libraries, one child and the template process need, and some for what is
# read; a socket that listens at each of two addresses is there 17 times.
OWN_FILES = 92
FILES_PER_CHILD = 8
MIN_CONNECTIONS = 8

OWN_THREADS = 5  # the template process among them
THREADS_PER_CHILD = 6  # its first one among them, and two of the sockets' library


class SystemLimitError(Exception):
    """The system gives this process too little to run. The sentence is meant for the screen."""


def open_standard_streams() -> None:
    """Opens /dev/null in the place of a standard stream that is closed, for this process and its
    children: any file that is opened later would take its place, and be written to.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - they stay open
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def raise_file_limit() -> None:
    """Raises the limit of open files as far as it may be raised: a connection is a file, and the
    usual limit of 1024 is soon reached.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def connection_limit(children: int) -> int:
    """How many files this process may open for connections beside what it needs for itself and so
    many children. SystemLimitError where it may hardly open any.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_OPEN_FILES if soft == resource.RLIM_INFINITY else soft
    own = OWN_FILES + FILES_PER_CHILD * max(0, children - 1)
    if files < own + MIN_CONNECTIONS:
        raise SystemLimitError(
            f"this process may open {files} files, and needs {own + MIN_CONNECTIONS}: raise the "
            "limit (ulimit -n)"
        )
    return files - own


def check_threads(children: int) -> None:
    """SystemLimitError where the threads of a server with so many children can't be started beside
    each other now.
    """
    count = OWN_THREADS + THREADS_PER_CHILD * children
    # Threads without Python: each of its own would keep 64 MB of addresses for what it allocates.
    libc = ctypes.CDLL(None)
    semaphore = ctypes.create_string_buffer(64)
    libc.sem_init(semaphore, 0, 0)
    threads: list[ctypes.c_ulong] = []
    while len(threads) < count:
        thread = ctypes.c_ulong()
        if libc.pthread_create(ctypes.byref(thread), None, libc.sem_wait, semaphore) != 0:
            break
        threads.append(thread)
    for _ in threads:
        libc.sem_post(semaphore)
    for thread in threads:
        libc.pthread_join(thread, None)
    libc.sem_destroy(semaphore)
    if len(threads) < count:
        raise SystemLimitError(
            f"this process can start {len(threads)} threads, and needs {count} for itself and its "
            "children: raise the limit (ulimit -u, ulimit -v, or a container's limit of processes)"
        )


def end_signals() -> tuple[signal.Signals, ...]:
    """Signals at which a process ends in order. SIGHUP, which tells that the terminal has gone, is
    one of them unless it was ignored from the beginning, as nohup does it.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return (signal.SIGINT, signal.SIGTERM)
    return (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
