"""Communicators between CPU processes, over shared memory and TCP, against torch's gloo in the same
processes; and a plug-in in front of gloo.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from minisgl import _native
from minisgl.distributed import (
    DistributedInfo,
    Group,
    NativeDistributedImpl,
    TorchDistributedImpl,
    init_pynccl,
    make_communicator,
)
from tests.python.distributed.ranks import run_ranks
from tests.python.ports import LOOPBACK, free_port

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ANY_DTYPES = [torch.bool, torch.int64, torch.float64, torch.complex64, torch.float8_e4m3fn]


def free_address() -> str:
    return f"{LOOPBACK}:{free_port()}"


def group_of(rank: int, kind: str) -> Group:
    """The same on all ranks: rank 0 chooses."""
    chosen = [f"test-{random.getrandbits(64):x}", free_address()]
    dist.broadcast_object_list(chosen, src=0)
    name, address = chosen
    return Group(name, address if kind == "tcp" else None, secret="a secret of ranks")


def check_collectives(rank: int, size: int, kind: str) -> str:
    chosen = make_communicator(
        "torch" if kind == "torch" else "auto", DistributedInfo(rank, size), group_of(rank, kind)
    )
    comm = chosen.communicator
    native, reference = NativeDistributedImpl(comm), TorchDistributedImpl()
    shapes = random.Random(size)  # the same on every rank
    for dtype in DTYPES:
        for _ in range(8):
            shape = [shapes.randint(1, 40) for _ in range(shapes.randint(1, 3))]
            shape[0] *= size
            # Small whole numbers: sums are exact, in whatever order gloo adds.
            generator = torch.Generator().manual_seed(rank)
            x = torch.randint(-8, 8, shape, generator=generator).to(dtype)
            expected = reference.all_reduce(x.clone())
            reduced = x.clone()
            assert native.all_reduce(reduced).data_ptr() == reduced.data_ptr()
            assert torch.equal(reduced, expected)
            assert torch.equal(native.all_gather(x), reference.all_gather(x))
            part = x.new_empty(shape[0] // size, *shape[1:])
            comm.reduce_scatter(part, x)
            assert torch.equal(part, expected.chunk(size)[rank])
            root = shapes.randrange(size)
            comm.broadcast(x, root)
            assert torch.equal(x, reference.all_gather(x).chunk(size)[root])
            comm.barrier()
    check_odd_tensors(comm)
    return chosen.sentence


def check_odd_tensors(comm: _native.Communicator) -> None:
    """Tensors without elements, and gathers of every dtype into outputs of any shape."""
    for shape in ((0,), (0, 3), (3, 0)):
        empty = torch.empty(shape)
        comm.all_reduce(empty, "sum")
        comm.all_gather(torch.empty(shape), empty)
    for dtype in ANY_DTYPES:
        x = torch.full((2, 8), comm.rank + 1, dtype=torch.uint8).view(dtype)
        parts = [torch.full((2, 8), rank + 1, dtype=torch.uint8) for rank in range(comm.size)]
        for shape in ((comm.size * 2, x.shape[1]), (comm.size, *x.shape)):
            gathered = torch.empty(shape, dtype=dtype)
            comm.all_gather(gathered, x)
            assert torch.equal(gathered.view(torch.uint8).flatten(), torch.cat(parts).flatten())


def shm(rank: int, size: int) -> str:
    return check_collectives(rank, size, "shm")


def tcp(rank: int, size: int) -> str:
    return check_collectives(rank, size, "tcp")


def plugin(rank: int, size: int) -> str:
    check_pynccl_refusals(rank, size)
    return check_collectives(rank, size, "torch")


def check_pynccl_refusals(rank: int, size: int) -> None:
    """A place that isn't the group's."""
    group = dist.group.WORLD
    assert group is not None
    with pytest.raises(ValueError, match=f"tp_size {size + 1} .* is rank {rank} of {size}"):
        init_pynccl(tp_rank=rank, tp_size=size + 1, tp_cpu_group=group)
    with pytest.raises(ValueError, match=f"tp_rank {rank + 1} .* is rank {rank} of {size}"):
        init_pynccl(tp_rank=rank + 1, tp_size=size, tp_cpu_group=group)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_shared_memory_is_gloo(size: int, tmp_path: Path) -> None:
    sentences = run_ranks(shm, size, tmp_path)
    assert sentences == ["ranks talk through shared memory: all are on this host"] * size


@pytest.mark.parametrize("size", [2, 4])
def test_tcp_is_gloo(size: int, tmp_path: Path) -> None:
    for sentence in run_ranks(tcp, size, tmp_path):
        assert sentence.startswith("ranks talk through TCP: they are on several hosts")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_plugin_is_gloo(size: int, tmp_path: Path) -> None:
    sentences = run_ranks(plugin, size, tmp_path)
    assert sentences == ["ranks talk through torch.distributed, as asked"] * size


def wrong_calls(rank: int, size: int) -> list[str]:
    comm = make_communicator("shm", DistributedInfo(rank, size), group_of(rank, "shm")).communicator
    calls: list[Any] = [
        lambda: comm.all_reduce(torch.ones(4, 4).t()[:, :2]),
        lambda: comm.all_reduce(torch.ones(4, dtype=torch.int64)),
        lambda: comm.all_reduce(torch.ones(4, dtype=torch.complex64)),
        lambda: comm.all_reduce(torch.ones(4, dtype=torch.bool)),
        lambda: comm.all_reduce(torch.ones(4), "max"),
        lambda: comm.all_gather(torch.ones(5), torch.ones(4)),
        lambda: comm.all_gather(torch.ones(8, dtype=torch.int32), torch.ones(4)),
        lambda: comm.reduce_scatter(torch.ones(4), torch.ones(4)),
        lambda: comm.reduce_scatter(torch.ones(2), torch.ones(4).half()),
        lambda: comm.broadcast(torch.ones(4), root=2),
    ]
    messages = []
    for call in calls:
        with pytest.raises(_native.InputError) as caught:
            call()
        messages.append(str(caught.value))
    return messages


def test_wrong_tensors_are_refused_with_a_reason(tmp_path: Path) -> None:
    for messages in run_ranks(wrong_calls, 2, tmp_path):
        assert messages == [
            "tensor must be contiguous, got [4, 2] with strides [1, 4]",
            "tensor must be float32, float16 or bfloat16, got int64",
            "tensor must be float32, float16 or bfloat16, got complex64",
            "tensor must be float32, float16 or bfloat16, got bool",
            'op must be "sum", the only one that there is, got "max"',
            "output must have 32 bytes, got 20",
            "output must be of the input's dtype, torch.float32, got torch.int32",
            "input must have 32 bytes, got 16",
            "output must be of the input's dtype, torch.float16, got torch.float32",
            "root must be in [0, 2), got 2",
        ]


class FailingTarget:
    def barrier(self, stream: int) -> None:
        raise OSError("the cable is out")


def test_a_plugins_exception_ends_the_collective_with_its_words() -> None:
    comm = _native.PluginCommunicator(FailingTarget(), rank=0, size=2)
    with pytest.raises(_native.RankFailure, match="plug-in: OSError: the cable is out"):
        comm.barrier()


@pytest.mark.parametrize(
    ("kind", "device", "message"),
    [
        ("nccl", None, "--comm nccl is for GPUs; CPU ranks need auto, shm or torch"),
        ("one-shot", None, "--comm one-shot is for GPUs"),
        ("shm", 0, "--comm shm is for CPU ranks; GPUs need auto, nccl, one-shot or torch"),
        ("smoke", None, "one of auto, nccl, one-shot, torch, shm, got 'smoke'"),
    ],
)
def test_a_kind_that_cant_work_is_refused_before_anybody_waits(
    kind: Any, device: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_communicator(kind, DistributedInfo(0, 2), Group("never-used"), device=device)


def test_the_names_of_this_field_are_there() -> None:
    from minisgl import kernel

    assert kernel.PyNCCLCommunicator is _native.PyNCCLCommunicator
    assert callable(kernel.init_pynccl)
