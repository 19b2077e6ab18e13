"""A transformer's MLP cut over ranks: each rank multiplies its share, and one sum makes it whole.

    python examples/sharded_layers.py --ranks 2                   sums through torch (gloo)
    python examples/sharded_layers.py --ranks 2 --comm shm        through the native communicator

Needs torch. Each rank is a process; on GPUs the same layers sum through NCCL.
"""

from __future__ import annotations

import argparse
import os
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import linear, silu

from minisgl.distributed import (
    DistributedCommunicator,
    Group,
    NativeDistributedImpl,
    get_tp_info,
    make_communicator,
    set_tp_info,
)
from minisgl.layers import LinearColParallelMerged, LinearRowParallel

HIDDEN, INTERMEDIATE, ROWS = 64, 240, 5


def run_rank(rank: int, size: int, comm: str, folder: str) -> None:
    """One rank: the same weights everywhere, of which the layers keep this rank's part."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    set_tp_info(rank, size)
    if comm == "shm":  # the last plug-in is the one in use
        made = make_communicator("shm", get_tp_info(), Group(f"example-{os.getppid()}"))
        DistributedCommunicator.plugins.append(NativeDistributedImpl(made.communicator))

    torch.manual_seed(0)
    gate, up = torch.randn(2, INTERMEDIATE, HIDDEN) / HIDDEN**0.5
    down = torch.randn(HIDDEN, INTERMEDIATE) / INTERMEDIATE**0.5
    x = torch.randn(ROWS, HIDDEN)

    torch.set_num_threads(1)
    gate_up = LinearColParallelMerged(HIDDEN, [INTERMEDIATE, INTERMEDIATE], has_bias=False)
    back = LinearRowParallel(INTERMEDIATE, HIDDEN, has_bias=False)
    gate_up.load_state_dict({"weight": [gate, up]})  # output features are cut
    back.load_state_dict({"weight": down})  # input features are cut, then ranks sum

    gated, upper = gate_up(x).chunk(2, dim=1)
    y = back(silu(gated) * upper)

    whole = linear(silu(linear(x, gate)) * linear(x, up), down)
    print(
        f"rank {rank} of {size}: holds {gate_up.local_output_size} of {2 * INTERMEDIATE} features, "
        f"off by {(y - whole).abs().max():.1e} from the whole layer"
    )
    torch.testing.assert_close(y, whole, rtol=1e-4, atol=1e-5)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--comm", choices=["torch", "shm"], default="torch")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_rank, (args.ranks, args.comm, folder), nprocs=args.ranks)


if __name__ == "__main__":
    main()
