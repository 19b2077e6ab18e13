"""Forward of a layer of minisgl.layers over torch's F.linear, in one process, taking turns:

python bench/layers.py [--device cuda] [--rows 1 64] [--dtypes bfloat16] [--shape 14336x4096]

Each way goes round `--copies` weights, so that none is found in a cache. A line has the medians of
the rounds in microseconds, the least and the most, and torch's median over ours: above 1 is faster
than torch. On a GPU each way is timed as single calls and as one replayed CUDA graph. The last
lines are the time of a call in Python, for a layer that has next to nothing to compute.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import linear

from minisgl.distributed import set_tp_info
from minisgl.layers import LinearRowParallel


def microseconds(call: Callable[[], object], repeats: int, device: str) -> float:
    """A call's time, of `repeats` one after the other."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / repeats
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) * 1e6 / repeats


def recorded(call: Callable[[], object]) -> Callable[[], object]:
    """One replay of a CUDA graph of the call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def compare(
    name: str, ways: list[Callable[[], object]], per_call: int, rounds: int, device: str
) -> None:
    """Prints a line: the two ways, torch's last; each call of a way is `per_call` products."""
    for way in ways:
        way()
    taken: list[list[float]] = [[], []]
    guess = max(microseconds(way, 2, device) for way in ways)
    repeats = max(1, min(1000, int(2e5 / guess)))
    for _ in range(rounds):
        for way, times in zip(ways, taken, strict=True):
            times.append(microseconds(way, repeats, device) / per_call)
    ours, theirs = (statistics.median(times) for times in taken)
    columns = [f"{statistics.median(t):9.1f} ({min(t):.1f} to {max(t):.1f})" for t in taken]
    print(f"{name:<34} {columns[0]:>32} {columns[1]:>32} {theirs / ours:7.2f}", flush=True)


def make(outputs: int, inputs: int, dtype: torch.dtype, device: str) -> LinearRowParallel:
    layer = LinearRowParallel(inputs, outputs, has_bias=True).to(device, dtype)
    layer.weight.normal_().mul_(inputs**-0.5)
    assert layer.bias is not None
    layer.bias.normal_()
    return layer


def compare_products(args: argparse.Namespace, dtype: torch.dtype) -> None:
    outputs, inputs = (int(size) for size in args.shape.split("x"))
    layers = [make(outputs, inputs, dtype, args.device) for _ in range(args.copies)]
    for rows in args.rows:
        x = torch.randn(rows, inputs).to(args.device, dtype)

        def ours(x: torch.Tensor = x) -> None:
            for layer in layers:
                layer(x)

        def theirs(x: torch.Tensor = x) -> None:
            for layer in layers:
                linear(x, layer.weight, layer.bias)

        name = f"{args.shape} {str(dtype).removeprefix('torch.')}, {rows} rows"
        compare(name, [ours, theirs], len(layers), args.rounds, args.device)
        if args.device == "cuda":
            graphs = [recorded(ours), recorded(theirs)]
            compare(f"{name}, graph", graphs, len(layers), args.rounds, args.device)


def compare_overheads(args: argparse.Namespace, dtype: torch.dtype) -> None:
    layer = make(64, 64, dtype, args.device)
    x = torch.randn(1, 64).to(args.device, dtype)
    ways: list[Callable[[], object]] = [
        lambda: layer(x),
        lambda: linear(x, layer.weight, layer.bias),
    ]
    name = f"64x64 {str(dtype).removeprefix('torch.')}, a call in Python"
    # On a GPU, too, the time of the call: what is queued takes less.
    compare(name, ways, 1, 3 * args.rounds, "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", default="4096x14336", help="outputs x inputs")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16", "float16"], help="torch's names"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=2, help="weights that each way goes round")
    parser.add_argument("--threads", type=int, help="torch's and ours; torch's default if left out")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    set_tp_info(0, 1)
    place = (
        torch.cuda.get_device_name()
        if args.device == "cuda"
        else f"{torch.get_num_threads()} threads"
    )
    print(f"torch {torch.__version__}, {place}; microseconds, median (least to most)")
    print(f"{'':<34} {'minisgl.layers':>32} {'F.linear':>32} {'ratio':>7}")
    with torch.inference_mode():
        for name in args.dtypes:
            compare_products(args, getattr(torch, name))
        for name in args.dtypes:
            compare_overheads(args, getattr(torch, name))


if __name__ == "__main__":
    main()
