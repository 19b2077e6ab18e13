"""The sharded layers on ranks of their own against the whole layer, and against torch over gloo."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import linear, silu

from minisgl.distributed import (
    DistributedCommunicator,
    DistributedInfo,
    TorchDistributedImpl,
    info,
)
from minisgl.layers import BaseOP, LinearColParallelMerged, LinearQKVMerged, LinearRowParallel
from tests.python.distributed.ranks import run_ranks

SIZES = [1, 2, 3, 4, 8]
SHAPES = 6  # of each layer, drawn anew for each number of ranks
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """`theirs` is f32; values are of the size of 1."""
    tolerance = TOLERANCE[ours.dtype]
    torch.testing.assert_close(ours.float(), theirs, rtol=tolerance, atol=tolerance)


class Draw:
    """Random shapes and tensors of one dtype, the same on every rank."""

    def __init__(self, seed: int) -> None:
        self.numbers = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = self.numbers.choice(list(TOLERANCE))

    def up_to(self, most: int) -> int:
        return self.numbers.randint(1, most)

    def tensor(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def weight(self, outputs: int, inputs: int) -> torch.Tensor:
        return self.tensor(outputs, inputs) / inputs**0.5

    def bias(self, outputs: int) -> torch.Tensor | None:
        return self.tensor(outputs) if self.numbers.random() < 0.5 else None

    def rows(self, inputs: int) -> torch.Tensor:
        leading = self.numbers.choice([(), (self.up_to(20),), (self.up_to(3), self.up_to(6))])
        return self.tensor(*leading, inputs)


def whole(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return linear(x.float(), weight.float(), None if bias is None else bias.float())


def gathered(part: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Every rank's part."""
    return DistributedCommunicator().all_gather(part.unsqueeze(0)).unbind()


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def check_column_parallel(draw: Draw, rank: int, size: int) -> None:
    inputs = draw.up_to(90)
    outputs = [size * draw.up_to(30) for _ in range(draw.up_to(3))]
    weights = [draw.weight(n, inputs) for n in outputs]
    biases = [draw.bias(n) for n in outputs]
    x = draw.rows(inputs)
    layer = LinearColParallelMerged.from_weights(weights, biases)
    part = layer(x)
    assert (layer.full_input_size, layer.full_output_size) == (inputs, sum(outputs))
    assert (layer.local_input_size, layer.local_output_size) == (inputs, sum(outputs) // size)
    assert (part.dtype, part.shape) == (draw.dtype, (*x.shape[:-1], sum(outputs) // size))

    # What torch makes of the rank's rows.
    theirs = [
        whole(x, w.chunk(size)[rank], None if b is None else b.chunk(size)[rank])
        for w, b in zip(weights, biases, strict=True)
    ]
    close(part, torch.cat(theirs, dim=-1))
    # The ranks' shares of each output, put together.
    shares = [p.split([n // size for n in outputs], dim=-1) for p in gathered(part)]
    ours = [torch.cat([s[i] for s in shares], dim=-1) for i in range(len(outputs))]
    for mine, w, b in zip(ours, weights, biases, strict=True):
        close(mine, whole(x, w, b))

    # Made by sizes and filled by name: the same layer. Then what all ranks hold is the whole again.
    made = LinearColParallelMerged(inputs, outputs, layer.bias is not None).to(draw.dtype)
    full = {"weight": torch.cat(weights)}
    if layer.bias is not None:
        full["bias"] = torch.cat(
            [
                draw.tensor(n).zero_() if b is None else b
                for n, b in zip(outputs, biases, strict=True)
            ]
        )
    made.load_state_dict(full)
    assert same_bits(made.state_dict(), layer.state_dict())
    assert torch.equal(made(x), part)
    assert same_bits(made.full_state_dict(), full)


def check_row_parallel(draw: Draw, rank: int, size: int) -> None:
    inputs, outputs = size * draw.up_to(40), draw.up_to(90)
    weight, bias = draw.weight(outputs, inputs), draw.bias(outputs)
    x = draw.rows(inputs)
    layer = LinearRowParallel.from_weights(weight, bias)
    part = x.chunk(size, dim=-1)[rank]  # not contiguous where there are several rows
    before = part.clone()
    ours = layer(part)
    assert (layer.full_input_size, layer.full_output_size) == (inputs, outputs)
    assert (layer.local_input_size, layer.local_output_size) == (inputs // size, outputs)
    assert (ours.dtype, ours.shape) == (draw.dtype, (*x.shape[:-1], outputs))
    assert torch.equal(part, before)

    close(ours, whole(x, weight, bias))
    for other in gathered(ours):
        assert torch.equal(other, ours)

    made = LinearRowParallel(inputs, outputs, bias is not None).to(draw.dtype)
    full = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    made.load_state_dict(full)
    assert torch.equal(made(part), ours)
    assert same_bits(made.full_state_dict(), full)


def check_qkv(draw: Draw, rank: int, size: int) -> None:
    head_dim, inputs = 2 * draw.up_to(8), draw.up_to(90)
    # A multiple of the ranks, or a divisor of their number.
    kv_heads = draw.numbers.choice(
        [size * draw.up_to(2), *[n for n in range(1, size) if size % n == 0]]
    )
    heads = max(kv_heads, size) * draw.up_to(3)
    counts = [heads, kv_heads, kv_heads]
    weights = [draw.weight(n * head_dim, inputs) for n in counts]
    biases = [draw.bias(n * head_dim) for n in counts]
    x = draw.rows(inputs)
    layer = LinearQKVMerged.from_weights(tuple(weights), tuple(biases), head_dim=head_dim)
    local = [heads // size, max(1, kv_heads // size), max(1, kv_heads // size)]
    assert layer.full_output_size == sum(counts) * head_dim
    assert layer.local_output_size == sum(local) * head_dim
    queries, keys, values = layer(x).split([n * head_dim for n in local], dim=-1)

    query, key, value = (whole(x, w, b) for w, b in zip(weights, biases, strict=True))
    close(torch.cat(gathered(queries), dim=-1), query)
    # Each query head finds the KV head that it has in the whole layer.
    for i in range(local[0]):
        shared = (rank * local[0] + i) * kv_heads // heads
        mine = i * local[1] // local[0]
        here, there = (slice(n * head_dim, (n + 1) * head_dim) for n in (mine, shared))
        close(keys[..., here], key[..., there])
        close(values[..., here], value[..., there])

    made = LinearQKVMerged(inputs, head_dim, heads, kv_heads, layer.bias is not None)
    made.to(draw.dtype).load_state_dict(layer.full_state_dict())
    assert same_bits(made.state_dict(), layer.state_dict())
    assert torch.equal(made.full_state_dict()["weight"], torch.cat(weights))


class Mlp(BaseOP):
    def __init__(self, hidden: int, intermediate: int) -> None:
        self.gate_up_proj = LinearColParallelMerged(hidden, [intermediate, intermediate], False)
        self.down_proj = LinearRowParallel(intermediate, hidden, True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(silu(gate) * up)


def check_block(draw: Draw, rank: int, size: int) -> None:
    """A block that is loaded under the names of a checkpoint."""
    hidden, intermediate = draw.up_to(60), size * draw.up_to(30)
    checkpoint = {
        "mlp.gate_proj.weight": draw.weight(intermediate, hidden),
        "mlp.up_proj.weight": draw.weight(intermediate, hidden),
        "mlp.down_proj.weight": draw.weight(hidden, intermediate),
        "mlp.down_proj.bias": draw.tensor(hidden),
        "lm_head.weight": draw.tensor(1),  # another prefix
    }
    gate, up, down, bias, _ = checkpoint.values()
    x = draw.rows(hidden)
    mlp = Mlp(hidden, intermediate).to(draw.dtype)
    mlp.load_state_dict(checkpoint, prefix="mlp")
    close(mlp(x), whole(silu(whole(x, gate, None)) * whole(x, up, None), down, bias))
    full = mlp.full_state_dict(prefix="mlp")
    assert list(full) == ["mlp.gate_up_proj.weight", "mlp.down_proj.weight", "mlp.down_proj.bias"]
    again = Mlp(hidden, intermediate).to(draw.dtype)
    again.load_state_dict(full, prefix="mlp")
    assert torch.equal(again(x), mlp(x))


def check_layers(rank: int, most: int) -> list[int]:
    """The sizes that this rank was one of; the same processes form a group of each."""
    torch.set_num_threads(1)
    checked = []
    for size in SIZES:
        group = dist.new_group(list(range(size)))
        if rank >= size:
            continue
        DistributedCommunicator.plugins.append(TorchDistributedImpl(group))
        info._tp_info = DistributedInfo(rank, size)
        with torch.inference_mode():
            for seed in range(SHAPES):
                for check in (check_column_parallel, check_row_parallel, check_qkv, check_block):
                    check(Draw(100 * size + seed), rank, size)
        checked.append(size)
    return checked


def test_every_layer_over_ranks(tmp_path: Path) -> None:
    checked = run_ranks(check_layers, max(SIZES), tmp_path)
    assert checked == [[size for size in SIZES if rank < size] for rank in range(max(SIZES))]
