"""Linear layers cut over tensor-parallel ranks; not on the server's path.

Weights are float32, float16 or bfloat16 [out_features, in_features] and biases float32
[out_features], of the whole model, contiguous and in the host's memory. A layer reads its rank's
part of them once, packs it as the kernels need it and doesn't need them afterwards. Inputs are
float32 [num_rows, in_features], contiguous; they and the outputs cross to the native module by
DLPack, without a copy. What doesn't fit raises minisgl._native.InputError, a ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minisgl import _native
from minisgl.distributed import DistributedCommunicator, get_tp_info

if TYPE_CHECKING:
    import torch


class _Linear:
    def __init__(
        self,
        native: _native.LinearColParallelMerged
        | _native.LinearRowParallel
        | _native.LinearQKVMerged,
    ) -> None:
        self._native = native

    @property
    def in_features(self) -> int:
        """Columns of the input: of this rank's part, where the input is cut."""
        return self._native.in_features

    @property
    def out_features(self) -> int:
        """Columns of the output: of this rank's part, where the output is cut."""
        return self._native.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [num_rows, out_features] of x [num_rows, in_features]."""
        y = x.new_empty((x.shape[0], self.out_features))
        self._native.forward(x, y)
        return y

    __call__ = forward


class LinearColParallelMerged(_Linear):
    """Projections of one input, side by side; each rank computes its share of every one.

    The output features of each weight must be a multiple of the number of ranks.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None] | None = None,
        *,
        device: _native.LayerDevice,
    ) -> None:
        tp = get_tp_info()
        super().__init__(
            _native.LinearColParallelMerged(
                weights,
                biases or [None] * len(weights),
                rank=tp.rank,
                size=tp.size,
                device=device,
            )
        )


class LinearQKVMerged(_Linear):
    """Queries, keys and values side by side, cut by heads of head_dim features.

    The query heads must be a multiple of the number of ranks. KV heads that are fewer than the
    ranks must divide their number: then ranks that follow one another share a KV head.
    """

    def __init__(
        self,
        weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        biases: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None] | None = None,
        *,
        head_dim: int,
        device: _native.LayerDevice,
    ) -> None:
        tp = get_tp_info()
        super().__init__(
            _native.LinearQKVMerged(
                weights,
                biases or (None, None, None),
                head_dim=head_dim,
                rank=tp.rank,
                size=tp.size,
                device=device,
            )
        )


class LinearRowParallel(_Linear):
    """A projection whose input is cut: each rank multiplies its columns, and the ranks sum.

    The input is the rank's part, as a LinearColParallelMerged of one output leaves it. The sum goes
    through DistributedCommunicator; every rank has the whole output. The bias is added once. The
    input features must be a multiple of the number of ranks.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        device: _native.LayerDevice,
    ) -> None:
        tp = get_tp_info()
        super().__init__(
            _native.LinearRowParallel(weight, bias, rank=tp.rank, size=tp.size, device=device)
        )
        self._communicator = DistributedCommunicator() if tp.size > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [num_rows, out_features] of x [num_rows, in_features], the same on every rank."""
        y = super().forward(x)
        return self._communicator.all_reduce(y) if self._communicator else y

    __call__ = forward
