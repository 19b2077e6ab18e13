"""DistributedCommunicator over GPUs beside torch.distributed's NCCL, in the same processes:

python bench/communicators.py [--ranks 2] [--rounds 5] [--calls 20] [--buffer 67108864]

Microseconds of one all-reduce of bf16 in a torch.cuda.graph of --calls, by message size; then of
one all-gather, by the size of a rank's part. Medians over rounds (with the range) in which the two
take turns, on rank 0; the ratio is torch's time over ours. Each pair's results are compared first.
The first lines say how long enable_pynccl_distributed took, and which way it chose by size.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

KB, MB = 1 << 10, 1 << 20
SIZES = [8 * KB, 64 * KB, 256 * KB, 1 * MB, 4 * MB, 16 * MB, 64 * MB]


def size_text(num_bytes: int) -> str:
    return f"{num_bytes // KB} KB" if num_bytes < MB else f"{num_bytes // MB} MB"


def recorded(call: Callable[[], object], calls: int) -> torch.cuda.CUDAGraph:
    """`calls` calls in a graph, which has run once."""
    import torch

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(calls):
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def microseconds(graph: torch.cuda.CUDAGraph, calls: int, replays: int) -> float:
    """Of one call. One more replay goes first: it takes up the time that ranks are apart."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e3 / (calls * replays)


def compare(
    name: str, ways: list[Callable[[], object]], num_bytes: int, args: argparse.Namespace, rank: int
) -> None:
    graphs = [recorded(way, args.calls) for way in ways]
    times: list[list[float]] = [[] for _ in ways]
    replays = max(2, min(20, 32 * MB // num_bytes))
    for _ in range(args.rounds):
        for graph, taken in zip(graphs, times, strict=True):
            taken.append(microseconds(graph, args.calls, replays))
    if rank == 0:
        ours, torchs = (statistics.median(taken) for taken in times)
        ranges = [f"({min(taken):.1f} to {max(taken):.1f})" for taken in times]
        print(
            f"{name:12} {size_text(num_bytes):>8} {ours:9.1f} {ranges[0]:20} "
            f"{torchs:9.1f} {ranges[1]:20} {torchs / ours:6.2f}",
            flush=True,
        )


def rank_main(rank: int, args: argparse.Namespace, folder: str) -> None:
    import torch
    import torch.distributed as dist

    from minisgl.distributed import (
        DistributedCommunicator,
        DistributedInfo,
        PyNCCLDistributedImpl,
        TorchDistributedImpl,
        enable_pynccl_distributed,
    )

    torch.cuda.set_device(rank)
    device = torch.device("cuda", rank)
    place = {"rank": rank, "world_size": args.ranks}
    dist.init_process_group("nccl", init_method=f"file://{folder}/rendezvous", **place)
    cpu_group = dist.new_group(backend="gloo")
    started = time.perf_counter()
    enable_pynccl_distributed(DistributedInfo(rank, args.ranks), cpu_group, args.buffer)
    took = time.perf_counter() - started
    communicator = DistributedCommunicator()
    native = communicator.plugins[-1]
    assert isinstance(native, PyNCCLDistributedImpl)
    if rank == 0:
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        print(f"{args.ranks} ranks on {torch.cuda.get_device_name(0)}; torch {torch.__version__}")
        print(f"torch.distributed: NCCL {nccl}; ours: {native.comm.name}")
        print(f"enable_pynccl_distributed took {took:.2f} s")
        print(f"{'':12} {'bytes':>8} {'minisgl':>9} {'':20} {'torch':>9} {'':20} {'ratio':>6}")
    reference = TorchDistributedImpl()
    for num_bytes in SIZES:
        generator = torch.Generator(device).manual_seed(rank)
        x = torch.randint(-8, 8, (num_bytes // 2,), generator=generator, device=device).bfloat16()
        ours, torchs = communicator.all_reduce(x.clone()), reference.all_reduce(x.clone())
        assert torch.equal(ours, torchs), f"sums of {num_bytes} bytes differ"
        zeros = torch.zeros_like(x)
        ways: list[Callable[[], object]] = [
            lambda x=zeros: communicator.all_reduce(x),
            lambda x=zeros: reference.all_reduce(x),
        ]
        compare("all-reduce", ways, num_bytes, args, rank)
    for num_bytes in SIZES:
        x = torch.full((num_bytes // 2,), float(rank), dtype=torch.bfloat16, device=device)
        ours, torchs = communicator.all_gather(x), reference.all_gather(x)
        assert torch.equal(ours, torchs), f"gathers of {num_bytes} bytes differ"
        ways = [lambda x=x: communicator.all_gather(x), lambda x=x: reference.all_gather(x)]
        compare("all-gather", ways, num_bytes, args, rank)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--buffer", type=int, default=64 * MB, help="max_bytes of the enabling")
    args = parser.parse_args()

    import torch
    import torch.multiprocessing as mp

    if torch.cuda.device_count() < args.ranks:
        raise SystemExit(
            f"{args.ranks} ranks need as many GPUs; there are {torch.cuda.device_count()}"
        )
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # no NVLink multicast, for both
    with TemporaryDirectory(prefix="communicators-") as folder:
        mp.spawn(rank_main, args=(args, str(Path(folder))), nprocs=args.ranks)


if __name__ == "__main__":
    main()
