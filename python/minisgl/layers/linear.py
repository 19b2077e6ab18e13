"""Linear layers cut over tensor-parallel ranks; not on the server's path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from minisgl import _native
from minisgl._native import InputError
from minisgl.distributed import DistributedCommunicator, get_tp_info
from minisgl.layers.base import BaseOP

_Layer = TypeVar("_Layer", bound="_LinearTPImpl")

_CUT = ("weight", "bias")  # a layer's tensors; the others of a class of one's own are whole
_MAX_SIZE = 2**40  # of features: sums and products of sizes stay 64-bit numbers


@dataclass(frozen=True)
class _Part:
    """One of the projections side by side in a layer: `units` of `unit` features, which are cut."""

    role: str  # of the table of cuts
    what: str  # the argument that says `units`
    units: int
    unit: int = 1

    @property
    def features(self) -> int:
        return self.units * self.unit

    def slice(self, rank: int, size: int) -> tuple[int, int]:
        """The first of a rank's features and their number."""
        _, first, count = _native.shard(self.role, self.what, self.units, rank, size)
        return first * self.unit, count * self.unit

    def cut(self) -> int:
        """The dimension of the weight that is cut."""
        return 0 if _native.shard(self.role, self.what, self.units, 0, 1)[0] else 1


class _LinearTPImpl(BaseOP):
    """A rank's part of a linear layer: y = x · weightᵀ + bias, of what the rank holds.

    `weight` [local_output_size, local_input_size] and `bias` [local_output_size] (or None) are
    ordinary tensors, made empty with torch's default dtype on its default device. They may be
    filled, assigned and moved; both have the same dtype, float32, bfloat16 or float16, and device.

    On a CPU the layer keeps a second copy of `weight` in its kernels' own order, made when forward
    is first called and made again when the tensor is another one, has other memory, or was changed
    in place as its version counter tells. torch counts no changes through `weight.data` or
    through an array that shares the memory, and none of a tensor that was made in inference mode.
    Such a change is seen where it reaches one of 64 elements spread over the matrix, as one that
    rewrites the matrix does. Assign a new tensor, or change `weight` itself, to be sure.

    Products on a CPU run on torch.get_num_threads() threads, which all layers of the process share:
    calls from several Python threads take turns.

    `parts` say how the whole is cut. A class of your own may leave them out: its load_state_dict
    takes the rank's own tensors, and full_state_dict refuses unless every rank holds the whole.
    Tensors that it has beside `weight` and `bias` are whole on every rank, as in BaseOP.
    """

    def __init__(
        self,
        full_isize: int,
        full_osize: int,
        local_isize: int,
        local_osize: int,
        has_bias: bool,
        parts: Sequence[_Part] = (),
    ) -> None:
        self.full_input_size = full_isize
        self.full_output_size = full_osize
        self.local_input_size = local_isize
        self.local_output_size = local_osize
        with torch.inference_mode(False):  # tensors made in it have no version counter
            self.weight: torch.Tensor = torch.empty(local_osize, local_isize)
            self.bias: torch.Tensor | None = torch.empty(local_osize) if has_bias else None
        tp = get_tp_info()
        self._rank, self._size = tp.rank, tp.size
        self._parts = tuple(parts)
        self._cut = parts[0].cut() if parts else 0
        self._multiply = _native.LinearProduct(local_isize, local_osize).run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., local_output_size] of x [..., local_input_size], in its dtype and on its device.

        x has the weight's dtype and device and any strides. Sums are float32 and rounded once. On a
        GPU the product is queued on torch's current stream, and may be captured in a
        torch.cuda.graph after a first call outside of it. There is no gradient: what requires one
        is refused where gradients are recorded (call under torch.no_grad() or
        torch.inference_mode()). Raises InputError, a ValueError, for what doesn't fit.
        """
        y: torch.Tensor = self._multiply(x, self.weight, self.bias)
        return y

    def __repr__(self) -> str:
        full = f"{self.full_input_size} -> {self.full_output_size}"
        local = f"{self.local_input_size} -> {self.local_output_size}"
        bias = f"bias={self.bias is not None}"
        return (
            f"{type(self).__name__}({full}, {local} on rank {self._rank} of {self._size}, {bias})"
        )

    def _check_tensor(
        self, attribute: str, key: str, value: torch.Tensor | Sequence[torch.Tensor]
    ) -> None:
        if attribute not in _CUT:
            super()._check_tensor(attribute, key, value)
            return
        sizes = self._full_sizes(attribute)
        pieces: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
        for piece in pieces:
            if not isinstance(piece, torch.Tensor):
                raise TypeError(
                    f"{key} must be a torch.Tensor or a list of them, got {type(piece).__name__}"
                )
        got = [list(piece.shape) for piece in pieces]
        whole = [sum(size[0] for size in sizes), *sizes[0][1:]]
        if got not in ([whole], sizes):
            apart = f", or its parts {_listed(sizes)}" if len(sizes) > 1 else ""
            raise InputError(f"{key} must be the whole {whole}{apart}; got {_listed(got)}")

    def _load_tensor(self, attribute: str, value: torch.Tensor | Sequence[torch.Tensor]) -> None:
        if attribute not in _CUT:
            super()._load_tensor(attribute, value)
            return
        sizes = self._full_sizes(attribute)
        if isinstance(value, torch.Tensor):
            value = torch.split(value, [size[0] for size in sizes])
        local = self._writable(attribute, value[0].device)
        with torch.no_grad():
            if not self._parts or (attribute == "bias" and self._cut == 1):
                local.copy_(value[0])
                return
            offset = 0
            for part, tensor in zip(self._parts, value, strict=True):
                first, count = part.slice(self._rank, self._size)
                local.narrow(self._cut, offset, count).copy_(tensor.narrow(self._cut, first, count))
                offset += count

    def _gather_tensor(self, attribute: str) -> torch.Tensor:
        local: torch.Tensor = getattr(self, attribute)
        if self._size == 1 or attribute not in _CUT or (attribute == "bias" and self._cut == 1):
            return local
        if not self._parts:
            full = (self.full_input_size, self.full_output_size)
            if full != (self.local_input_size, self.local_output_size):
                raise InputError(f"{self} does not say how it is cut, so its whole is not known")
            return local
        # Dimension 0 is gathered: the cut one is brought there, and back.
        gathered = DistributedCommunicator().all_gather(local.movedim(self._cut, 0).contiguous())
        whole = gathered.new_empty((sum(p.features for p in self._parts), *gathered.shape[1:]))
        ranks = gathered.chunk(self._size)
        begin = offset = 0
        for part in self._parts:
            for rank, tensor in enumerate(ranks):
                first, count = part.slice(rank, self._size)
                whole.narrow(0, begin + first, count).copy_(tensor.narrow(0, offset, count))
            begin += part.features
            offset += part.slice(self._rank, self._size)[1]
        return whole.movedim(0, self._cut).contiguous()

    def _full_sizes(self, attribute: str) -> list[list[int]]:
        """The shapes of the parts of the whole tensor, or of the rank's where it isn't known."""
        if not self._parts:
            return [list(getattr(self, attribute).shape)]
        inputs = [self.full_input_size] if attribute == "weight" else []
        if self._cut == 1:
            return [[self.full_output_size, *inputs]]
        return [[part.features, *inputs] for part in self._parts]

    @classmethod
    def _loaded(
        cls: type[_Layer],
        layer: _Layer,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
    ) -> _Layer:
        """The layer, made on the meta device, with these parts of the whole."""
        for what, tensors in (("weights", weights), ("biases", biases)):
            if len(tensors) != len(weights):
                raise InputError(f"{len(weights)} weights, {len(tensors)} {what}")
        layer.to(weights[0].dtype)
        state: dict[str, Sequence[torch.Tensor]] = {"weight": weights}
        if layer.bias is not None:
            state["bias"] = [
                weight.new_zeros(weight.shape[0]) if bias is None else bias
                for weight, bias in zip(weights, biases, strict=True)
            ]
        layer.load_state_dict(state)
        return layer


class LinearColParallelMerged(_LinearTPImpl):
    """Projections of one input, side by side; each rank computes its share of every one.

    Each of output_sizes must be a multiple of the number of ranks. The output is the rank's own:
    the shares of the projections one after the other.
    """

    def __init__(self, input_size: int, output_sizes: Sequence[int], has_bias: bool) -> None:
        tp = get_tp_info()
        check_size("input_size", input_size)
        if not isinstance(output_sizes, (list, tuple)):
            raise TypeError(f"output_sizes must be a list, got {type(output_sizes).__name__}")
        if not output_sizes:
            raise InputError("output_sizes must have at least one size")
        parts = []
        for index, size in enumerate(output_sizes):
            check_size(f"output_sizes[{index}]", size)
            parts.append(_Part("gate", f"output_sizes[{index}]", size))
        local_size = sum(part.slice(tp.rank, tp.size)[1] for part in parts)
        super().__init__(input_size, sum(output_sizes), input_size, local_size, has_bias, parts)

    @classmethod
    def from_weights(
        cls,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None] | None = None,
    ) -> LinearColParallelMerged:
        """The rank's slices of whole weights [output_size, input_size] and biases [output_size].

        The layer has the dtype and device of the first weight. A bias that is None is zeros.
        """
        check_matrices(weights)
        biases = biases or [None] * len(weights)
        has_bias = any(bias is not None for bias in biases)
        with torch.device("meta"):
            layer = cls(weights[0].shape[1], [weight.shape[0] for weight in weights], has_bias)
        return cls._loaded(layer, weights, biases)


class LinearQKVMerged(_LinearTPImpl):
    """Queries, keys and values side by side, cut by heads of head_dim features.

    The query heads must be a multiple of the KV heads and of the number of ranks. KV heads that are
    fewer than the ranks must divide their number: then ranks that follow one another hold the same
    KV head. The output is the rank's own: its queries, keys and values.
    """

    def __init__(
        self, hidden_size: int, head_dim: int, num_qo_heads: int, num_kv_heads: int, has_bias: bool
    ) -> None:
        tp = get_tp_info()
        check_size("hidden_size", hidden_size)
        check_size("head_dim", head_dim)
        check_size("num_qo_heads", num_qo_heads)
        check_size("num_kv_heads", num_kv_heads)
        if num_qo_heads % num_kv_heads:
            raise InputError(
                f"num_qo_heads must be a multiple of num_kv_heads, "
                f"got {num_qo_heads} and {num_kv_heads}"
            )
        parts = [
            _Part("query", "num_qo_heads", num_qo_heads, head_dim),
            _Part("key", "num_kv_heads", num_kv_heads, head_dim),
            _Part("value", "num_kv_heads", num_kv_heads, head_dim),
        ]
        full_size = sum(part.features for part in parts)
        local_size = sum(part.slice(tp.rank, tp.size)[1] for part in parts)
        super().__init__(hidden_size, full_size, hidden_size, local_size, has_bias, parts)

    @classmethod
    def from_weights(
        cls,
        weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        biases: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None] | None = None,
        *,
        head_dim: int,
    ) -> LinearQKVMerged:
        """The rank's heads of the whole weights of queries, keys and values, and of their biases.

        The layer has the dtype and device of the first weight. A bias that is None is zeros.
        """
        check_matrices(weights)
        check_size("head_dim", head_dim)
        if len(weights) != 3:
            raise InputError(f"queries, keys and values are three weights, got {len(weights)}")
        biases = biases or (None, None, None)
        has_bias = any(bias is not None for bias in biases)
        for index, weight in enumerate(weights):
            if weight.shape[0] % head_dim:
                raise InputError(
                    f"weights[{index}] has {weight.shape[0]} rows, "
                    f"no multiple of head_dim {head_dim}"
                )
        query, key, _ = (weight.shape[0] // head_dim for weight in weights)
        with torch.device("meta"):
            layer = cls(weights[0].shape[1], head_dim, query, key, has_bias)
        return cls._loaded(layer, weights, biases)


class LinearRowParallel(_LinearTPImpl):
    """A projection whose input is cut: each rank multiplies its columns, and the ranks sum.

    The input is the rank's part, as a LinearColParallelMerged of one output leaves it; input_size
    must be a multiple of the number of ranks. The sum goes through DistributedCommunicator, and
    every rank has the whole output. Every rank holds the bias; rank 0 alone adds it.
    """

    def __init__(self, input_size: int, output_size: int, has_bias: bool) -> None:
        tp = get_tp_info()
        check_size("input_size", input_size)
        check_size("output_size", output_size)
        part = _Part("down", "input_size", input_size)
        local_size = part.slice(tp.rank, tp.size)[1]
        super().__init__(input_size, output_size, local_size, output_size, has_bias, [part])
        self._comm = DistributedCommunicator()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., output_size] of x [..., local_input_size], the same on every rank.

        All ranks call it together. The rest is as in the other layers.
        """
        y: torch.Tensor = self._multiply(x, self.weight, self.bias if self._rank == 0 else None)
        return y if self._size == 1 else self._comm.all_reduce(y)

    @classmethod
    def from_weights(
        cls, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> LinearRowParallel:
        """The rank's columns of the whole weight [output_size, input_size], and the whole bias.

        The layer has the dtype and device of the weight.
        """
        check_matrices([weight])
        with torch.device("meta"):
            layer = cls(weight.shape[1], weight.shape[0], bias is not None)
        return cls._loaded(layer, [weight], [bias])


def check_size(name: str, size: int) -> None:
    """Raises TypeError unless `size` is an int, InputError unless it is in [1, 2**40]."""
    if not isinstance(size, int):
        raise TypeError(f"{name} must be an int, got {type(size).__name__}")
    if size < 1:
        raise InputError(f"{name} must be positive, got {size}")
    if size > _MAX_SIZE:
        raise InputError(f"{name} must be at most {_MAX_SIZE}, got {size}")


def check_matrices(weights: Sequence[torch.Tensor]) -> None:
    """Raises TypeError for what is no tensor, InputError for matrices that are no one layer."""
    if not weights:
        raise InputError("a layer needs at least one weight")
    for weight in weights:
        if not isinstance(weight, torch.Tensor):
            raise TypeError(f"a weight must be a torch.Tensor, got {type(weight).__name__}")
        if weight.dim() != 2:
            raise InputError(f"a weight must have two dimensions, got {list(weight.shape)}")
        if (weight.shape[1], weight.dtype) != (weights[0].shape[1], weights[0].dtype):
            raise InputError(
                "weights of one layer must have the same number of columns and one dtype, got "
                f"{list(weights[0].shape)} of {weights[0].dtype} and "
                f"{list(weight.shape)} of {weight.dtype}"
            )


def _listed(shapes: Sequence[Sequence[int]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)
