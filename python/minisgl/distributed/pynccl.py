"""Starts the native communicator between GPUs over a process group."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from minisgl.distributed.impl import TorchDistributedImpl
from minisgl.distributed.info import DistributedInfo
from minisgl.distributed.plugin import make_plugin_communicator
from minisgl.environment import pynccl_buffer_limit

if TYPE_CHECKING:
    import torch.distributed

    from minisgl._native import PyNCCLCommunicator

# How long a sum waits for another rank, in seconds; torch.distributed's default for NCCL.
WAIT_SECONDS = 600.0


def init_pynccl(
    *,
    tp_rank: int,
    tp_size: int,
    tp_cpu_group: torch.distributed.ProcessGroup,
    max_size_bytes: int = 0,
) -> PyNCCLCommunicator:
    """Connects this rank's GPU, torch's current device, to the others; returns when all are there.

    The ranks meet over tp_cpu_group (gloo), which carries the NCCL unique id of rank 0. Then they
    time sums in a CUDA graph, for about a second at most, and take the fastest way for each size:
    through each other's memory, by NCCL in place, or by NCCL in a registered buffer of
    max_size_bytes, which MINISGL_PYNCCL_MAX_BUFFER_SIZE clamps; 0 means no buffer. The
    communicator's `name` tells what they found.

    Ranks on this host are watched: when one dies, collectives of the others raise
    minisgl._native.RankFailure. A rank that stays away from a sum for ten minutes is given up; what
    was summed then through its memory is NaN. Raises ValueError where rank and size aren't the
    group's, minisgl._native.InputError where the build has no CUDA, NCCL can't be loaded or fails.
    """
    import torch
    import torch.distributed as dist

    from minisgl import _native

    place = (dist.get_rank(tp_cpu_group), dist.get_world_size(tp_cpu_group))
    if place != (tp_rank, tp_size):
        raise ValueError(
            f"tp_rank {tp_rank} and tp_size {tp_size} must be the place in tp_cpu_group, which is "
            f"rank {place[0]} of {place[1]}"
        )
    info = DistributedInfo(tp_rank, tp_size)
    communicator = _native.PyNCCLCommunicator(
        make_plugin_communicator(TorchDistributedImpl(tp_cpu_group), info),
        device=torch.cuda.current_device() if torch.cuda.is_available() else 0,
        max_buffer_bytes=clamp_buffer(max_size_bytes),
        library=find_nccl_library(),
    )
    communicator.set_time_limit(WAIT_SECONDS)
    return communicator


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
