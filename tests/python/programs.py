"""Runs a program as torchrun would, in ranks forked from a process that has imported torch: that
import is most of the time of a small program.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing as mp
import os
import runpy
import sys
import traceback
import warnings
from collections.abc import Sequence
from multiprocessing.queues import Queue
from pathlib import Path

from tests.python.ports import free_port

SECONDS = 60.0  # for one program
PRELOAD = ["torch.distributed", "minisgl.distributed", "minisgl.layers", "minisgl.ipc.queues"]


def run_program(program: Path, folder: Path, size: int = 1, arguments: Sequence[str] = ()) -> str:
    """What rank 0 of `size` ranks prints, working in `folder`."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    port = free_port()
    results: Queue[tuple[bool, str]] = context.Queue()
    command = [str(program), *arguments]
    ranks = [
        context.Process(
            target=run_rank, args=(command, folder, rank, size, port, results), daemon=True
        )
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    try:
        succeeded, output = results.get(timeout=SECONDS)
        assert succeeded, output
    finally:
        for process in ranks:
            process.join(timeout=10)
            process.kill()
    assert [process.exitcode for process in ranks] == [0] * size
    return output


def run_rank(
    command: Sequence[str],
    folder: Path,
    rank: int,
    size: int,
    port: int,
    results: Queue[tuple[bool, str]],
) -> None:
    """Reports rank 0's output, or what went wrong."""
    import torch

    os.chdir(folder)
    sys.argv[:] = command
    if size > 1:
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for category in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("error", category)
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            runpy.run_path(command[0], run_name="__main__")
    except BaseException:
        results.put((False, f"rank {rank} of {size}:\n{traceback.format_exc()}"))
        raise
    if rank == 0:
        results.put((True, output.getvalue()))
