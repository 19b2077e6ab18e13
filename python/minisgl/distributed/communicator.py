"""The communicator of layers/, not on the server's path: the last of a list of plug-ins."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from minisgl.distributed.impl import (
    DistributedImpl,
    PyNCCLDistributedImpl,
    TorchDistributedImpl,
)
from minisgl.distributed.info import DistributedInfo
from minisgl.distributed.pynccl import init_pynccl

if TYPE_CHECKING:
    import torch
    import torch.distributed


class DistributedCommunicator:
    """Collectives through the last of `plugins`, which all communicators of a process share."""

    plugins: ClassVar[list[DistributedImpl]] = [TorchDistributedImpl()]

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place."""
        return self.plugins[-1].all_reduce(x)

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """Every rank's x along dimension 0: [size * n, ...] of [n, ...].

        Raises ValueError for a scalar.
        """
        if x.dim() == 0:
            raise ValueError("all_gather needs a tensor with at least one dimension, got a scalar")
        return self.plugins[-1].all_gather(x)


def enable_pynccl_distributed(
    tp_info: DistributedInfo, tp_cpu_group: torch.distributed.ProcessGroup, max_bytes: int
) -> None:
    """Makes the native NCCL communicator the one in use; does nothing with a single rank.

    Every rank of tp_cpu_group (a gloo group) calls it, with its GPU as torch's current device.
    max_bytes is init_pynccl's max_size_bytes.
    """
    if tp_info.size == 1:
        return
    comm = init_pynccl(
        tp_rank=tp_info.rank,
        tp_size=tp_info.size,
        tp_cpu_group=tp_cpu_group,
        max_size_bytes=max_bytes,
    )
    DistributedCommunicator.plugins.append(PyNCCLDistributedImpl(comm))
