"""A DistributedImpl as a native communicator: for debugging, and for backends that are not here."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from minisgl import _native
from minisgl.distributed.impl import DistributedImpl
from minisgl.distributed.info import DistributedInfo

if TYPE_CHECKING:
    import torch


class PluginTarget:
    """What the native side calls, with one-dimensional DLPack capsules of its own memory.

    A DistributedImpl only sums and gathers; the other collectives are made of these, at the price
    of more traffic. Calls come from the engine's thread, under the GIL.
    """

    def __init__(self, impl: DistributedImpl, info: DistributedInfo, device: int) -> None:
        self._impl = impl
        self._info = info
        self._device = device

    def all_reduce(self, data: Any, stream: int) -> None:
        """Sums `data` over the ranks, in place."""
        with self._on_stream(stream):
            x = _tensor(data)
            reduced = self._impl.all_reduce(x)
            if reduced is not x:
                x.copy_(reduced)

    def all_gather(self, data: Any, output: Any, stream: int) -> None:
        """Writes every rank's `data`, in the order of ranks, to `output` (size times as long)."""
        with self._on_stream(stream):
            _tensor(output).copy_(self._impl.all_gather(_tensor(data)))

    def reduce_scatter(self, data: Any, output: Any, stream: int) -> None:
        """Writes this rank's part of the sum of all `data` to `output` (1/size as long)."""
        with self._on_stream(stream):
            reduced = self._impl.all_reduce(_tensor(data).clone())
            _tensor(output).copy_(reduced.chunk(self._info.size)[self._info.rank])

    def broadcast(self, data: Any, root: int, stream: int) -> None:
        """Overwrites `data` with that of rank `root`."""
        with self._on_stream(stream):
            x = _tensor(data)
            x.copy_(self._impl.all_gather(x).chunk(self._info.size)[root])

    def barrier(self, stream: int) -> None:
        """Returns, or on a GPU lets the stream go on, once every rank has called it."""
        import torch

        with self._on_stream(stream):
            place = "cpu" if self._device < 0 else f"cuda:{self._device}"
            self._impl.all_reduce(torch.zeros(1, device=place))

    def _on_stream(self, stream: int) -> contextlib.AbstractContextManager[Any]:
        if self._device < 0:
            return contextlib.nullcontext()
        import torch

        external = torch.cuda.ExternalStream(stream, device=self._device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(external)


def make_plugin_communicator(
    impl: DistributedImpl, info: DistributedInfo, device: int = -1
) -> _native.Communicator:
    """`impl` as a communicator for native code. `device`: the GPU's ordinal; -1: CPU ranks."""
    target = PluginTarget(impl, info, device)
    return _native.PluginCommunicator(target, rank=info.rank, size=info.size, device=device)


def _tensor(capsule: Any) -> torch.Tensor:
    from torch.utils.dlpack import from_dlpack

    tensor: torch.Tensor = from_dlpack(capsule)
    return tensor
