"""An attention and an MLP block of Llama, cut over tensor-parallel ranks, from minisgl.layers.

python examples/tensor_parallel.py                                  one rank
torchrun --nproc-per-node 2 examples/tensor_parallel.py             two: gloo on CPUs, NCCL on GPUs
torchrun --nproc-per-node 2 examples/tensor_parallel.py --graph     GPUs: in a CUDA graph, too
torchrun --nproc-per-node 2 examples/tensor_parallel.py --comm native      CPUs: shared memory

Compares the result with the same layers on one rank (a process that rank 0 starts) and with plain
torch, and prints what a pass takes, beside torch with the same cuts. Llama 3 8B has --hidden 4096
--heads 32 --kv-heads 8 --head-dim 128 --intermediate 14336. Needs torch (`pip
install torch`), which an installation of minisgl for CPUs doesn't bring.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from minisgl.distributed import (
    DistributedCommunicator,
    Group,
    NativeDistributedImpl,
    enable_pynccl_distributed,
    get_tp_info,
    make_communicator,
    set_tp_info,
)
from minisgl.layers import BaseOP, LinearColParallelMerged, LinearQKVMerged, LinearRowParallel

# How far a result may be off, relative to the largest value.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
ROUNDS = 5  # of each way's timing; the ways take turns
REPLAYS = 1000

Rotation = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, [rows, 1, head_dim / 2]


@dataclass(frozen=True)
class Sizes:
    """Of the whole block."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int


# --- what the layers' block and torch's block have in common


def rotation(rows: int, head_dim: int) -> Rotation:
    """The rotary embedding's angles for positions 0 to rows - 1."""
    frequencies = 10_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.outer(torch.arange(rows), frequencies)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, angles: Rotation) -> torch.Tensor:
    """[rows, heads, head_dim], each head turned by its row's angles."""
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attend(qkv: torch.Tensor, heads: int, head_dim: int, angles: Rotation) -> torch.Tensor:
    """Causal attention of one sequence with grouped heads: [rows, heads * head_dim] of queries,
    keys and values side by side.
    """
    by_head = qkv.unflatten(-1, (-1, head_dim))
    kv_heads = (by_head.shape[1] - heads) // 2
    q, k, v = by_head.split([heads, kv_heads, kv_heads], dim=1)
    q, k = rotate(q, angles), rotate(k, angles)
    k, v = (each.repeat_interleave(heads // kv_heads, dim=1) for each in (k, v))
    out = scaled_dot_product_attention(
        q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], is_causal=True
    )
    return out[0].transpose(0, 1).flatten(1)


# --- the block of minisgl's layers


class Norm(BaseOP):
    """Root mean square normalisation; every rank has all of it."""

    def __init__(self, size: int) -> None:
        self.weight = torch.ones(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight.shape, self.weight, 1e-5)


class Attention(BaseOP):
    """Each rank has its share of the heads; o_proj sums over the ranks."""

    def __init__(self, sizes: Sizes) -> None:
        self._local_heads = sizes.heads // get_tp_info().size
        self._head_dim = sizes.head_dim
        self.qkv_proj = LinearQKVMerged(
            sizes.hidden, sizes.head_dim, sizes.heads, sizes.kv_heads, has_bias=False
        )
        self.o_proj = LinearRowParallel(sizes.heads * sizes.head_dim, sizes.hidden, has_bias=False)

    def forward(self, x: torch.Tensor, angles: Rotation) -> torch.Tensor:
        qkv = self.qkv_proj(x)
        return self.o_proj(attend(qkv, self._local_heads, self._head_dim, angles))


class Mlp(BaseOP):
    """Each rank has its share of the intermediate features; down_proj sums over the ranks."""

    def __init__(self, sizes: Sizes) -> None:
        self.gate_up_proj = LinearColParallelMerged(
            sizes.hidden, [sizes.intermediate, sizes.intermediate], has_bias=False
        )
        self.down_proj = LinearRowParallel(sizes.intermediate, sizes.hidden, has_bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(silu(gate) * up)


class Block(BaseOP):
    """One layer of Llama. Its tensors have the names that checkpoints give them."""

    def __init__(self, sizes: Sizes) -> None:
        self.input_layernorm = Norm(sizes.hidden)
        self.self_attn = Attention(sizes)
        self.post_attention_layernorm = Norm(sizes.hidden)
        self.mlp = Mlp(sizes)

    def forward(self, x: torch.Tensor, angles: Rotation) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), angles)
        return x + self.mlp(self.post_attention_layernorm(x))


def whole_weights(sizes: Sizes) -> dict[str, torch.Tensor]:
    """The block's weights under the names of a checkpoint, the same in every process."""
    generator = torch.Generator().manual_seed(0)

    def random(outputs: int, inputs: int) -> torch.Tensor:
        return torch.randn(outputs, inputs, generator=generator) / inputs**0.5

    attention, kv = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    return {
        "input_layernorm.weight": 1 + 0.1 * torch.randn(sizes.hidden, generator=generator),
        "self_attn.q_proj.weight": random(attention, sizes.hidden),
        "self_attn.k_proj.weight": random(kv, sizes.hidden),
        "self_attn.v_proj.weight": random(kv, sizes.hidden),
        "self_attn.o_proj.weight": random(sizes.hidden, attention),
        "post_attention_layernorm.weight": 1 + 0.1 * torch.randn(sizes.hidden, generator=generator),
        "mlp.gate_proj.weight": random(sizes.intermediate, sizes.hidden),
        "mlp.up_proj.weight": random(sizes.intermediate, sizes.hidden),
        "mlp.down_proj.weight": random(sizes.hidden, sizes.intermediate),
    }


# --- the same in torch alone


class TorchBlock:
    """Cut by hand for `rank` of `size`; at size 1 it is the whole, and plain torch."""

    def __init__(
        self, weights: dict[str, torch.Tensor], sizes: Sizes, rank: int, size: int
    ) -> None:
        def rows(name: str, parts: int) -> torch.Tensor:
            return weights[name].chunk(parts)[rank * parts // size]

        def columns(name: str) -> torch.Tensor:
            return weights[name].chunk(size, dim=1)[rank].contiguous()

        kv_parts = min(size, sizes.kv_heads)  # ranks beyond the KV heads share one
        self._size, self._head_dim = size, sizes.head_dim
        self._local_heads = sizes.heads // size
        self._norms = (
            weights["input_layernorm.weight"],
            weights["post_attention_layernorm.weight"],
        )
        self._qkv = torch.cat(
            [
                rows("self_attn.q_proj.weight", size),
                rows("self_attn.k_proj.weight", kv_parts),
                rows("self_attn.v_proj.weight", kv_parts),
            ]
        )
        self._o = columns("self_attn.o_proj.weight")
        self._gate_up = torch.cat(
            [rows("mlp.gate_proj.weight", size), rows("mlp.up_proj.weight", size)]
        )
        self._down = columns("mlp.down_proj.weight")

    def __call__(self, x: torch.Tensor, angles: Rotation) -> torch.Tensor:
        before, between = self._norms
        qkv = linear(rms_norm(x, before.shape, before, 1e-5), self._qkv)
        attended = attend(qkv, self._local_heads, self._head_dim, angles)
        x = x + self._sum(linear(attended, self._o))
        gate, up = linear(rms_norm(x, between.shape, between, 1e-5), self._gate_up).chunk(2, -1)
        return x + self._sum(linear(silu(gate) * up, self._down))

    def _sum(self, x: torch.Tensor) -> torch.Tensor:
        if self._size > 1:
            dist.all_reduce(x)
        return x


# --- the program


def join(device: str, comm: str, max_bytes: int) -> None:
    """Says which rank this process is, and connects it to the others."""
    set_tp_info(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    tp = get_tp_info()
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if tp.size == 1:
        return
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    if comm == "torch":
        return  # the plug-in that is there from the beginning
    if device == "cuda":
        enable_pynccl_distributed(tp, dist.new_group(backend="gloo"), max_bytes)
    else:
        group = Group(f"tensor-parallel-{os.environ['MASTER_PORT']}")
        made = make_communicator("shm", tp, group)
        DistributedCommunicator.plugins.append(NativeDistributedImpl(made.communicator))


def milliseconds(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median time of a call of each way. The ways take turns, and all ranks take them
    together.
    """
    synchronize = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            way()  # the ranks meet
            synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                way()
            synchronize()
            times[name].append((time.perf_counter() - start) / repeats * 1e3)
    return {name: statistics.median(taken) for name, taken in times.items()}


def difference(y: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference on any rank, relative to the largest value."""
    apart = ((y - expected).abs().max() / expected.abs().max()).float().reshape(1)
    if get_tp_info().size > 1:
        apart = DistributedCommunicator().all_gather(apart)
    return float(apart.max())


def on_one_rank() -> tuple[torch.Tensor, float]:
    """This program's result in a process that is a single rank, and the time of a pass."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result"
        subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--save", str(path)],
            check=True,
            env={name: value for name, value in os.environ.items() if name not in ranks},
        )
        saved = torch.load(path, weights_only=True)
    return saved["y"], saved["milliseconds"]


def said(times: Mapping[str, float]) -> str:
    """One line of them."""
    return ", ".join(f"{name} {ms:.3f} ms" for name, ms in times.items())


def record(call: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """A CUDA graph of a call that ran before, and the tensor that each replay writes."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call()
    return graph, y


def replay(graph: torch.cuda.CUDAGraph, y: torch.Tensor) -> str:
    """Replays a graph; raises AssertionError where a result isn't the first one."""
    graph.replay()
    first = y.clone()
    differs = torch.zeros((), dtype=torch.bool, device=y.device)
    for _ in range(REPLAYS - 1):
        graph.replay()
        differs |= (y != first).any()
    assert not bool(differs), "a replay's result isn't the first one's"
    return f"{REPLAYS} replays gave the same result"


def main() -> None:
    args = arguments()
    dtype: torch.dtype = getattr(torch, args.dtype)
    sizes = Sizes(args.hidden, args.heads, args.kv_heads, args.head_dim, args.intermediate)
    join(args.device, args.comm, args.rows * args.hidden * dtype.itemsize)
    tp, device = get_tp_info(), args.device

    weights = {name: value.to(device, dtype) for name, value in whole_weights(sizes).items()}
    x = torch.randn(args.rows, sizes.hidden, generator=torch.Generator().manual_seed(1))
    x = x.to(device, dtype)
    cos, sin = (each.to(device, dtype) for each in rotation(args.rows, sizes.head_dim))

    block = Block(sizes).to(device=device, dtype=dtype)
    block.load_state_dict(weights)  # takes the whole tensors, and keeps this rank's slices

    def ours() -> torch.Tensor:
        return block(x, (cos, sin))

    y = ours()
    if args.save:
        taken = milliseconds({"ours": ours}, args.repeats)["ours"]
        torch.save({"y": y.cpu(), "milliseconds": taken}, args.save)
        return

    plain = TorchBlock(weights, sizes, 0, 1)
    lines = [f"ranks: {tp.size}, {device}, {args.dtype}, {args.rows} rows: {sizes}"]
    errors = {"plain torch": difference(y, plain(x, (cos, sin)))}
    ways: dict[str, Callable[[], torch.Tensor]] = {"these layers": ours}
    if tp.size > 1:
        cut = TorchBlock(weights, sizes, tp.rank, tp.size)
        ways["torch with the same cuts"] = lambda: cut(x, (cos, sin))
        single: list[Any] = [on_one_rank() if tp.is_primary() else None]
        dist.broadcast_object_list(single)
        alone, alone_ms = single[0]
        errors["these layers on one rank"] = difference(y, alone.to(device))
        lines.append(f"one rank: these layers {alone_ms:.3f} ms")
    else:
        ways["plain torch"] = lambda: plain(x, (cos, sin))
    lines.append(f"a pass: {said(milliseconds(ways, args.repeats))}")
    if args.graph:
        recorded = {name: record(way) for name, way in ways.items()}
        replays = {name: graph.replay for name, (graph, _) in recorded.items()}
        lines.append(f"in a CUDA graph: {said(milliseconds(replays, args.repeats))}")
        lines.append(replay(*recorded["these layers"]))
        y = recorded["these layers"][1]
        errors["plain torch, in a graph"] = difference(y, plain(x, (cos, sin)))
        del recorded, replays  # graphs go before communicators
    lines += [f"off by {error:.1e} from {name}" for name, error in errors.items()]
    if tp.is_primary():
        print("\n".join(lines))
    assert max(errors.values()) <= TOLERANCE[dtype], f"off by more than {TOLERANCE[dtype]}"
    if tp.size > 1:
        dist.destroy_process_group()


def positive(text: str) -> int:
    """An option's value. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(text)


def arguments() -> argparse.Namespace:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden", type=positive, default=1024)
    parser.add_argument("--heads", type=positive, default=16)
    parser.add_argument("--kv-heads", type=positive, default=4)
    parser.add_argument("--head-dim", type=positive, default=64)
    parser.add_argument("--intermediate", type=positive, default=2816)
    parser.add_argument("--rows", type=positive, default=16, help="tokens of the one sequence")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if has_gpu else "cpu")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="default: bfloat16 on GPUs, float32 on CPUs",
    )
    parser.add_argument(
        "--comm",
        choices=["native", "torch"],
        default="native" if has_gpu else "torch",
        help="what sums over the ranks: the native communicator, or torch.distributed",
    )
    parser.add_argument("--repeats", type=positive, default=20, help="passes per timing")
    parser.add_argument("--graph", action="store_true", help="record the block in a CUDA graph")
    parser.add_argument("--save", help=argparse.SUPPRESS)  # the result, for the other ranks
    args = parser.parse_args()
    if args.device == "cuda" and not has_gpu:
        parser.error("--device cuda needs a GPU, and torch finds none")
    if args.graph and args.device != "cuda":
        parser.error("--graph needs a GPU")
    if args.head_dim % 2:
        parser.error(f"--head-dim must be even, for the rotary embedding, got {args.head_dim}")
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    return args


if __name__ == "__main__":
    with torch.no_grad():
        main()
