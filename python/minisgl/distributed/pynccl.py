"""Starts the native NCCL communicator of a process group."""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from minisgl.environment import pynccl_buffer_limit

if TYPE_CHECKING:
    import torch.distributed

    from minisgl._native import PyNCCLCommunicator

UNIQUE_ID_BYTES = 128


def init_pynccl(
    *,
    tp_rank: int,
    tp_size: int,
    tp_cpu_group: torch.distributed.ProcessGroup,
    max_size_bytes: int = 0,
) -> PyNCCLCommunicator:
    """Connects this rank to the others and returns when all are there.

    Rank 0 makes the NCCL unique id, which travels over tp_cpu_group (gloo). The GPU is torch's
    current device. Sums of up to max_size_bytes go through a registered buffer of that size, which
    MINISGL_PYNCCL_MAX_BUFFER_SIZE clamps; 0 means no buffer.

    Ranks on this host are watched: when one dies, collectives of the others raise
    minisgl._native.RankFailure. Raises minisgl._native.InputError where the build has no CUDA, NCCL
    can't be loaded or fails.
    """
    import torch
    import torch.distributed as dist

    from minisgl import _native

    buffer_bytes = clamp_buffer(max_size_bytes)
    library = find_nccl_library()
    # One flag, then the id: every rank hears of a failure on rank 0 instead of waiting for ever.
    message = torch.zeros(1 + UNIQUE_ID_BYTES, dtype=torch.uint8)
    failure: _native.InputError | None = None
    if tp_rank == 0:
        try:
            unique_id = _native.nccl_unique_id(library)
            message = torch.tensor([1, *unique_id], dtype=torch.uint8)
        except _native.InputError as error:
            failure = error
    dist.broadcast(message, src=dist.get_global_rank(tp_cpu_group, 0), group=tp_cpu_group)
    made, *received = message.tolist()
    if not made:
        raise failure or _native.InputError(
            "rank 0 could not make an NCCL unique id; its own error says why"
        )
    processes: list[tuple[str, int]] = [("", 0)] * tp_size
    here = socket.gethostname()
    dist.all_gather_object(processes, (here, os.getpid()), group=tp_cpu_group)
    return _native.PyNCCLCommunicator(
        bytes(received),
        rank=tp_rank,
        size=tp_size,
        device=torch.cuda.current_device(),
        max_buffer_bytes=buffer_bytes,
        library=library,
        pids=[pid if host == here else 0 for host, pid in processes],
    )


def clamp_buffer(max_size_bytes: int) -> int:
    """At most MINISGL_PYNCCL_MAX_BUFFER_SIZE, where that is set."""
    limit = pynccl_buffer_limit()
    return max_size_bytes if limit is None else min(max_size_bytes, limit)


def find_nccl_library() -> str:
    """Path of libnccl.so.2 in NVIDIA's wheel, else "": the dynamic linker looks for it."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        library = Path(folder) / "nccl" / "lib" / "libnccl.so.2"
        if library.is_file():
            return str(library)
    return ""
