"""The shared-memory communicator beside torch's gloo, in the same processes, taking turns:

python bench/comm_peer.py [--ranks 2] [--rounds 5]

Prints the median and the range over rounds of the time of one float32 all-reduce, back to back, and
the ratio of the medians. Each rank keeps to a processor of its own where there are enough, as ranks
of a server do; --free leaves that out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

SIZES = [1 << 10, 4 << 10, 16 << 10, 64 << 10, 1 << 20, 16 << 20]


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def keep_to_a_processor(rank: int, size: int) -> None:
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) >= size:
        os.sched_setaffinity(0, {processors[rank]})


def rank_main(rank: int, size: int, folder: str, rounds: int) -> None:
    import torch
    import torch.distributed as dist

    from minisgl import _native

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/gloo", rank=rank, world_size=size)
    shm = _native.ShmCommunicator(os.path.basename(folder), rank=rank, size=size)
    tcp_port = 20_000 + os.getppid() % 20_000
    tcp = _native.TcpCommunicator(
        f"127.0.0.1:{tcp_port}", secret=os.path.basename(folder), rank=rank, size=size
    )
    if rank == 0:
        print(f"{size} ranks; microseconds a call: median (least to most)")
        print(f"{'bytes':>10} {'shared memory':>24} {'TCP':>24} {'gloo':>24}   gloo / shm")
    for num_bytes in SIZES:
        x = torch.zeros(num_bytes // 4)
        repeats = max(5, min(300, (32 << 20) // num_bytes))
        ways: list[Callable[[], object]] = [
            lambda x=x: shm.all_reduce(x),
            lambda x=x: tcp.all_reduce(x),
            lambda x=x: dist.all_reduce(x),
        ]
        times: list[list[float]] = [[], [], []]
        for _ in range(rounds):
            for way, taken in zip(ways, times, strict=True):
                dist.barrier()
                taken.append(seconds_of(way, repeats) * 1e6)
        if rank == 0:
            medians = [statistics.median(taken) for taken in times]
            columns = [
                f"{median:10.1f} ({min(taken):.1f} to {max(taken):.1f})".rjust(24)
                for median, taken in zip(medians, times, strict=True)
            ]
            print(
                f"{num_bytes:>10} {' '.join(columns)}   {medians[2] / medians[0]:.1f}", flush=True
            )
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--free", action="store_true", help="let ranks run on any processor")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        if not args.free:
            keep_to_a_processor(args.rank, args.ranks)
        return rank_main(args.rank, args.ranks, args.folder, args.rounds)
    with tempfile.TemporaryDirectory(prefix="comm-peer-") as folder:
        command = [
            sys.executable,
            __file__,
            "--ranks",
            str(args.ranks),
            "--rounds",
            str(args.rounds),
        ]
        ranks = [
            subprocess.Popen(
                [*command, "--rank", str(rank), "--folder", folder, *(["--free"] * args.free)]
            )
            for rank in range(args.ranks)
        ]
        if any([rank.wait() for rank in ranks]):
            raise SystemExit("a rank failed; its error is above")


if __name__ == "__main__":
    main()
