"""Runs a function in several processes that form a torch.distributed group (gloo)."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = 180.0  # seconds for all ranks


def run_ranks(
    function: Callable[[int, int], Any],
    size: int,
    folder: Path,
    environment: Callable[[int], dict[str, str]] = lambda rank: {},
) -> list[Any]:
    """Calls function(rank, size) in `size` new processes; returns their results in rank order.

    `environment` gives variables that are set in a rank's process before torch starts anything. An
    exception on any rank fails the caller with that rank's traceback.
    """
    context = mp.get_context("spawn")
    results: Queue[tuple[int, bool, Any]] = context.Queue()
    processes = [
        context.Process(
            target=_rank_main,
            args=(function, rank, size, folder / "rendezvous", environment(rank), results),
            daemon=True,
        )
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    outcomes: dict[int, Any] = {}
    try:
        for _ in processes:
            rank, succeeded, value = results.get(timeout=TIMEOUT)
            assert succeeded, f"rank {rank} of {size} failed:\n{value}"
            outcomes[rank] = value
    finally:
        for process in processes:
            process.join(timeout=20)
            if process.is_alive():
                process.kill()
    return [outcomes[rank] for rank in range(size)]


def _rank_main(
    function: Callable[[int, int], Any],
    rank: int,
    size: int,
    rendezvous: Path,
    environment: dict[str, str],
    results: Queue[tuple[int, bool, Any]],
) -> None:
    os.environ.update(environment)
    for category in (DeprecationWarning, FutureWarning):  # of torch.distributed, by version
        warnings.simplefilter("error", category)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size
        )
        value = function(rank, size)
        dist.barrier()
        dist.destroy_process_group()
        results.put((rank, True, value))
    except BaseException:
        results.put((rank, False, traceback.format_exc()))
