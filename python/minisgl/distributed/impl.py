"""Ways to sum and gather tensors over ranks: torch.distributed, and native communicators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    import torch.distributed

    from minisgl._native import Communicator, PyNCCLCommunicator


class DistributedImpl(ABC):
    """Collectives over all ranks; every rank makes the same calls in the same order."""

    @abstractmethod
    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, written into x, which is returned."""

    @abstractmethod
    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """Every rank's x along dimension 0, in the order of ranks: [size * n, ...] of [n, ...]."""


class TorchDistributedImpl(DistributedImpl):
    """Through a group of torch.distributed: gloo on CPUs, NCCL on GPUs. The reference.

    `group`: None is the default group.
    """

    def __init__(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        self._group = group

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sums x over the ranks, in place, and returns it."""
        import torch.distributed as dist

        if dist.get_world_size(self._group) > 1:
            dist.all_reduce(x, dist.ReduceOp.SUM, group=self._group)
        return x

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """As in DistributedImpl; x need not be contiguous."""
        import torch
        import torch.distributed as dist

        size = dist.get_world_size(self._group)
        if size == 1:
            return x
        # torch 2.4's gloo writes in a thread that isn't in the caller's inference mode.
        with torch.inference_mode(False):
            gathered = x.new_empty((size * x.shape[0], *x.shape[1:]))
        # torch 2.13 renamed it, and warns of the name that 2.4 to 2.12 have.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(gathered, x.contiguous(), group=self._group)
        return gathered


class NativeDistributedImpl(DistributedImpl):
    """Through a native communicator: between CPU ranks, or on torch's current stream, so that a
    CUDA graph captures it.

    Takes contiguous float32, float16 and bfloat16 tensors on the communicator's device; all_gather
    takes every dtype. Raises minisgl._native.RankFailure where another rank fails.
    """

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sums x over the ranks, in place, and returns it."""
        self.comm.all_reduce(x, "sum")
        return x

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """As in DistributedImpl; x need not be contiguous."""
        gathered = x.new_empty((self.comm.size * x.shape[0], *x.shape[1:]))
        self.comm.all_gather(gathered, x.contiguous())
        return gathered


class PyNCCLDistributedImpl(NativeDistributedImpl):
    """Through the native NCCL communicator."""

    def __init__(self, comm: PyNCCLCommunicator) -> None:
        super().__init__(comm)
