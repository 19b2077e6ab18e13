"""The sharded layers on ranks of their own against the whole layer, and against torch over gloo."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import linear

from minisgl._native import InputError
from minisgl.distributed import get_tp_info, set_tp_info
from minisgl.layers import (
    LayerDevice,
    LinearColParallelMerged,
    LinearQKVMerged,
    LinearRowParallel,
    divide_even,
)
from tests.python.distributed.ranks import run_ranks

SIZES = [1, 2, 3, 4, 8]
SHAPES = 6  # of each layer, drawn anew for each number of ranks


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


class Draw:
    """Random shapes and tensors, the same on every rank."""

    def __init__(self, seed: int) -> None:
        self.numbers = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def up_to(self, most: int) -> int:
        return self.numbers.randint(1, most)

    def tensor(self, *shape: int) -> torch.Tensor:
        values = torch.randn(shape, generator=self.generator)
        return values / shape[-1] ** 0.5 if len(shape) == 2 else values

    def weight(self, outputs: int, inputs: int) -> torch.Tensor:
        dtype = self.numbers.choice([torch.float32, torch.float16, torch.bfloat16])
        return self.tensor(outputs, inputs).to(dtype)

    def bias(self, outputs: int) -> torch.Tensor | None:
        return self.tensor(outputs) if self.numbers.random() < 0.5 else None


def whole(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return linear(x, weight.float(), bias)


def gathered(part: torch.Tensor, size: int) -> list[torch.Tensor]:
    parts = [torch.empty_like(part) for _ in range(size)]
    dist.all_gather(parts, part.contiguous())
    return parts


def check_column_parallel(draw: Draw, rank: int, size: int, device: LayerDevice) -> None:
    inputs, rows = draw.up_to(90), draw.up_to(20)
    outputs = [size * draw.up_to(30) for _ in range(draw.up_to(3))]
    weights = [draw.weight(n, inputs) for n in outputs]
    biases = [draw.bias(n) for n in outputs]
    x = draw.tensor(rows, inputs)
    layer = LinearColParallelMerged(weights, biases, device=device)
    part = layer(x)
    assert (layer.in_features, layer.out_features) == (inputs, sum(outputs) // size)

    # What torch makes of the rank's rows.
    theirs = [
        linear(x, w.chunk(size)[rank].float(), None if b is None else b.chunk(size)[rank])
        for w, b in zip(weights, biases, strict=True)
    ]
    close(part, torch.cat(theirs, dim=1))
    # The ranks' shares of each output, put together.
    shares = [p.split([n // size for n in outputs], dim=1) for p in gathered(part, size)]
    ours = torch.cat([torch.cat([s[i] for s in shares], dim=1) for i in range(len(outputs))], dim=1)
    close(ours, torch.cat([whole(x, w, b) for w, b in zip(weights, biases, strict=True)], dim=1))


def check_row_parallel(draw: Draw, rank: int, size: int, device: LayerDevice) -> None:
    inputs, outputs, rows = size * draw.up_to(40), draw.up_to(90), draw.up_to(20)
    weight, bias = draw.weight(outputs, inputs), draw.bias(outputs)
    x = draw.tensor(rows, inputs)
    layer = LinearRowParallel(weight, bias, device=device)
    part = x.chunk(size, dim=1)[rank].contiguous()
    before = part.clone()
    ours = layer(part)
    assert (layer.in_features, layer.out_features) == (inputs // size, outputs)
    assert torch.equal(part, before)

    theirs = linear(part, weight.chunk(size, dim=1)[rank].float())
    dist.all_reduce(theirs)
    close(ours, theirs if bias is None else theirs + bias)
    close(ours, whole(x, weight, bias))
    for other in gathered(ours, size):
        assert torch.equal(other, ours)


def check_qkv(draw: Draw, rank: int, size: int, device: LayerDevice) -> None:
    head_dim, inputs, rows = 2 * draw.up_to(8), draw.up_to(90), draw.up_to(20)
    # A multiple of the ranks, or a divisor of their number.
    kv_heads = draw.numbers.choice(
        [size * draw.up_to(2), *[n for n in range(1, size) if size % n == 0]]
    )
    heads = max(kv_heads, size) * draw.up_to(3)
    counts = [heads, kv_heads, kv_heads]
    weights = [draw.weight(n * head_dim, inputs) for n in counts]
    biases = [draw.bias(n * head_dim) for n in counts]
    x = draw.tensor(rows, inputs)
    layer = LinearQKVMerged(tuple(weights), tuple(biases), head_dim=head_dim, device=device)
    local = [heads // size, max(1, kv_heads // size), max(1, kv_heads // size)]
    queries, keys, values = layer(x).split([n * head_dim for n in local], dim=1)

    query, key, value = (whole(x, w, b) for w, b in zip(weights, biases, strict=True))
    close(torch.cat(gathered(queries, size), dim=1), query)
    # Each query head finds the KV head that it has in the whole layer.
    for i in range(local[0]):
        shared = (rank * local[0] + i) * kv_heads // heads
        mine = i * local[1] // local[0]
        here, there = (slice(n * head_dim, (n + 1) * head_dim) for n in (mine, shared))
        close(keys[:, here], key[:, there])
        close(values[:, here], value[:, there])


def check_layers(rank: int, size: int) -> bool:
    torch.set_num_threads(1)
    set_tp_info(rank, size)
    device = LayerDevice(num_threads=1)
    for seed in range(SHAPES):
        for check in (check_column_parallel, check_row_parallel, check_qkv):
            check(Draw(100 * size + seed), rank, size, device)
    return True


@pytest.mark.parametrize("size", SIZES)
def test_every_layer_over_ranks(size: int, tmp_path: Path) -> None:
    assert run_ranks(check_layers, size, tmp_path) == [True] * size


def refusals(rank: int, size: int) -> list[str]:
    set_tp_info(rank, size)
    device = LayerDevice(num_threads=1)
    weight = torch.zeros(9, 6)
    layer = LinearColParallelMerged([torch.zeros(4, 6)], device=device)
    attempts = [
        partial(LinearColParallelMerged, [weight], device=device),
        partial(LinearRowParallel, weight.t().contiguous(), device=device),
        partial(LinearQKVMerged, (weight, weight, weight), head_dim=3, device=device),
        partial(LinearQKVMerged, (weight, weight, weight), head_dim=2, device=device),
        partial(LinearColParallelMerged, [weight.t()], device=device),
        partial(LinearColParallelMerged, [torch.zeros(4, 6)], [torch.zeros(3)], device=device),
        partial(LinearColParallelMerged, [torch.zeros(4, 6, dtype=torch.int8)], device=device),
        partial(LinearColParallelMerged, [torch.zeros(4, 6), torch.zeros(4, 8)], device=device),
        partial(layer, torch.zeros(2, 5)),
        partial(layer, torch.zeros(2, 6, dtype=torch.float16)),
        partial(layer, torch.zeros(6, 2).t()),
    ]
    messages = []
    for attempt in attempts:
        with pytest.raises(InputError) as error:
            attempt()
        messages.append(str(error.value))
    return messages


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    messages = run_ranks(refusals, 2, tmp_path)
    assert messages[0] == messages[1]
    assert messages[0] == [
        "the projection's weight: 9 features can't be split over 2 ranks",
        "the projection's weight: 9 features can't be split over 2 ranks",
        "the query's weight: 3 heads can't be split over 2 ranks",
        "9 features of the query can't be divided evenly by 2",
        "the projection's weight must be contiguous",
        "the projection's bias must be float32 of 4 elements",
        "the projection's weight must be float32, float16 or bfloat16",
        "weights of one layer must have the same number of columns",
        "input must be float32 of 6 columns",
        "input must be float32 of 6 columns",
        "input must be contiguous",
    ]


def output_is_written_in_place(rank: int, size: int) -> bool:
    set_tp_info(rank, size)
    assert get_tp_info().size == size
    device = LayerDevice(num_threads=1)
    layer = LinearColParallelMerged([torch.eye(4)], device=device)
    x = torch.arange(8.0).reshape(2, 4)
    y = torch.full((2, 4), float("nan"))
    layer._native.forward(x, y)
    return torch.equal(y, x)


def test_tensors_are_not_copied(tmp_path: Path) -> None:
    assert run_ranks(output_is_written_in_place, 1, tmp_path) == [True]


def test_divide_even_is_the_one_of_the_native_module() -> None:
    assert divide_even(12, 4) == 3
    with pytest.raises(InputError, match="9 can't be divided evenly by 4"):
        divide_even(9, 4)
