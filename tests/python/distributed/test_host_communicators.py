"""Communicators between CPU processes, over shared memory and TCP, against torch's gloo in the same
processes; and a plug-in in front of gloo.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from minisgl.distributed import (
    DistributedInfo,
    Group,
    NativeDistributedImpl,
    TorchDistributedImpl,
    make_communicator,
)
from tests.python.distributed.ranks import run_ranks

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


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
    return chosen.sentence


def shm(rank: int, size: int) -> str:
    return check_collectives(rank, size, "shm")


def tcp(rank: int, size: int) -> str:
    return check_collectives(rank, size, "tcp")


def plugin(rank: int, size: int) -> str:
    return check_collectives(rank, size, "torch")


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
    from minisgl import _native

    comm = make_communicator("shm", DistributedInfo(rank, size), group_of(rank, "shm")).communicator
    calls: list[Any] = [
        lambda: comm.all_reduce(torch.ones(4, 4).t()[:, :2]),
        lambda: comm.all_reduce(torch.ones(4, dtype=torch.int64)),
        lambda: comm.all_gather(torch.ones(5), torch.ones(4)),
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
            "tensor must be contiguous",
            "tensor must be float32, float16 or bfloat16",
            "output must have 32 bytes, got 20",
            "input must have 32 bytes, got 16",
            "output and input must have one dtype",
            "root must be in [0, 2), got 2",
        ]


class FailingTarget:
    def barrier(self, stream: int) -> None:
        raise OSError("the cable is out")


def test_a_plugins_exception_ends_the_collective_with_its_words() -> None:
    from minisgl import _native

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
    from minisgl import _native, kernel

    assert kernel.PyNCCLCommunicator is _native.PyNCCLCommunicator
    assert callable(kernel.init_pynccl)
