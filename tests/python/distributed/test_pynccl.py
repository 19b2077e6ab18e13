"""PyNCCLCommunicator and PyNCCLDistributedImpl against plain torch, with two ranks that may share a
GPU; what is for two GPUs is skipped with one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from minisgl.distributed import (
    DistributedCommunicator,
    DistributedInfo,
    PyNCCLDistributedImpl,
    enable_pynccl_distributed,
)
from minisgl.kernel import PyNCCLCommunicator, init_pynccl
from tests.python.distributed.ranks import run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and its torch"),
]

SIZE = 2
SHAPES = [(1,), (3, 5), (64, 576), (1024, 2048), (0,), (0, 8), (8, 0)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ANY_DTYPES = [torch.bool, torch.int64, torch.float64, torch.complex64, torch.float8_e4m3fn]
# Elements of bf16 in each class of sizes from 4 KB to 64 MB, beyond it, and between classes.
COUNTS = [2048 << size_class for size_class in range(15)] + [3_000_001, 40_000_001]
needs_two = pytest.mark.skipif(
    torch.cuda.device_count() < SIZE, reason="needs two GPUs: shared, one takes too long"
)


def environment(rank: int) -> dict[str, str]:
    # NCCL refuses two ranks of one host on one GPU, so ranks that share a GPU pose as two hosts.
    if torch.cuda.device_count() >= SIZE:
        return {}
    return {"NCCL_HOSTID": f"minisgl-test-{rank}", "NCCL_SOCKET_IFNAME": "lo"}


def part(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Rank's input: small whole numbers, so sums are exact in every dtype."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randint(-8, 8, shape, generator=generator).to(dtype)


def start(rank: int, max_bytes: int) -> DistributedCommunicator:
    torch.cuda.set_device(rank % torch.cuda.device_count())
    group = torch.distributed.group.WORLD
    assert group is not None
    enable_pynccl_distributed(DistributedInfo(rank, SIZE), group, max_bytes)
    assert isinstance(DistributedCommunicator.plugins[-1], PyNCCLDistributedImpl)
    return DistributedCommunicator()


def sum_and_gather(rank: int, max_bytes: int) -> None:
    communicator = start(rank, max_bytes)
    for shape in SHAPES:
        for dtype in DTYPES:
            parts = [part(r, shape, dtype) for r in range(SIZE)]
            x = parts[rank].cuda()
            gathered = communicator.all_gather(x)
            reduced = communicator.all_reduce(x)
            assert reduced.data_ptr() == x.data_ptr()
            torch.testing.assert_close(reduced.cpu(), parts[0] + parts[1], rtol=0, atol=0)
            torch.testing.assert_close(gathered.cpu(), torch.cat(parts), rtol=0, atol=0)


def without_buffer(rank: int, size: int) -> None:
    sum_and_gather(rank, max_bytes=0)


def with_buffer(rank: int, size: int) -> None:
    sum_and_gather(rank, max_bytes=2**20)  # the largest shape does not fit


def on_a_side_stream(rank: int, size: int) -> list[float]:
    communicator = start(rank, max_bytes=2**20)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = torch.full((4,), float(rank + 1), device="cuda")
        torch.cuda._sleep(50_000_000)  # the sum must wait for what is before it on this stream
        x += 10
        communicator.all_reduce(x)
    stream.synchronize()
    return [float(value) for value in x]


def in_a_graph(rank: int, size: int) -> None:
    """Sums of several sizes and a gather, replayed with other values."""
    communicator = start(rank, max_bytes=2**20)
    inputs = [torch.zeros(count, device="cuda") for count in (4, 5000, 200_000, 2_000_000)]
    graph = torch.cuda.CUDAGraph()
    for x in inputs:  # NCCL connects on first use, which can't be captured
        communicator.all_reduce(x)
    communicator.all_gather(inputs[0])
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        sums = [communicator.all_reduce(x + 1) for x in inputs]
        gathered = communicator.all_gather(inputs[0])
    for value in range(20):
        for x in inputs:
            x.fill_(value + rank)
        graph.replay()
        torch.cuda.synchronize()
        for x in sums:
            assert torch.equal(x, torch.full_like(x, 2 * value + 3))
        assert gathered.tolist() == [value] * 4 + [value + 1] * 4
    del graph  # before the communicator


def every_size(rank: int, size: int) -> str:
    """The chapter's calls, on torch's cached memory, with data that isn't aligned, too."""
    comm = start_comm(rank, max_bytes=8 << 20)
    graph_pool = torch.cuda.graph_pool_handle()
    for count in COUNTS:
        memory = torch.empty(count + 1, dtype=torch.bfloat16, device="cuda")
        for x in (memory[:-1], memory[1:]):
            values = torch.arange(count, device="cuda") % 100
            own = (values + rank).bfloat16()
            x.copy_(own)
            comm.all_reduce(x, "sum")
            assert torch.equal(x, (2 * values + 1).bfloat16()), count
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=graph_pool):
                x.copy_(own)
                comm.all_reduce(x, "sum")
            for _ in range(3):
                graph.replay()
            assert torch.equal(x, (2 * values + 1).bfloat16()), count
            del graph
        out = torch.empty(size, count, dtype=torch.bfloat16, device="cuda")
        comm.all_gather(out, own)
        for other in range(size):
            assert torch.equal(out[other], (values + other).bfloat16()), count
    return comm.name


def a_thousand_replays(rank: int, size: int) -> None:
    comm = start_comm(rank, max_bytes=0)
    inputs = [torch.randn(count, device="cuda").bfloat16() for count in (8, 4096, 100_000, 1 << 21)]
    places = [torch.empty_like(x) for x in inputs]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for x, place in zip(inputs, places, strict=True):
            place.copy_(x)
            comm.all_reduce(place, "sum")
    graph.replay()
    expected = [place.clone() for place in places]
    for _ in range(1000):
        graph.replay()
    for x, place, first in zip(inputs, places, expected, strict=True):
        assert torch.equal(place, first)
        gathered = x.new_empty(size, x.numel())
        comm.all_gather(gathered, place)
        assert torch.equal(gathered[0], gathered[1])
    del graph


def start_comm(rank: int, max_bytes: int) -> PyNCCLCommunicator:
    torch.cuda.set_device(rank % torch.cuda.device_count())
    group = torch.distributed.group.WORLD
    assert group is not None
    return init_pynccl(tp_rank=rank, tp_size=SIZE, tp_cpu_group=group, max_size_bytes=max_bytes)


def gathers_of_every_dtype(rank: int, size: int) -> None:
    comm = start_comm(rank, max_bytes=0)
    for dtype in ANY_DTYPES:
        own = torch.full((2, 8), rank + 1, dtype=torch.uint8, device="cuda").view(dtype)
        for shape in ((size * 2, own.shape[1]), (size, *own.shape)):
            out = torch.empty(shape, dtype=dtype, device="cuda")
            comm.all_gather(out, own)
            assert out.view(torch.uint8).flatten().tolist() == [1] * 16 + [2] * 16


def wrong_calls(rank: int, size: int) -> list[str]:
    from minisgl import _native

    comm = start_comm(rank, max_bytes=0)
    four = torch.ones(4, device="cuda")
    messages = []
    for call in (
        lambda: comm.all_reduce(torch.ones(4), "sum"),
        lambda: comm.all_reduce(torch.ones(4, 4, device="cuda").t()[:, :2], "sum"),
        lambda: comm.all_reduce(torch.ones(4, dtype=torch.int64, device="cuda"), "sum"),
        lambda: comm.all_reduce(four, "max"),
        lambda: comm.all_gather(torch.ones(4), four),
        lambda: comm.all_gather(torch.ones(9, device="cuda"), four),
        lambda: comm.all_gather(torch.ones(8, device="cuda", dtype=torch.int32), four),
    ):
        with pytest.raises(_native.InputError) as caught:
            call()
        messages.append(str(caught.value))
    return messages


@pytest.mark.parametrize("function", [without_buffer, with_buffer])
def test_sums_and_gathers_are_torchs(function: Any, tmp_path: Path) -> None:
    run_ranks(function, SIZE, tmp_path, environment)


def test_runs_on_the_current_stream(tmp_path: Path) -> None:
    assert run_ranks(on_a_side_stream, SIZE, tmp_path, environment) == [[23.0] * 4] * SIZE


def test_is_captured_in_a_graph(tmp_path: Path) -> None:
    run_ranks(in_a_graph, SIZE, tmp_path, environment)


@needs_two
def test_every_size_in_and_out_of_a_graph(tmp_path: Path) -> None:
    names = run_ranks(every_size, SIZE, tmp_path, environment)
    assert names[0].partition(" (")[0] == names[1].partition(" (")[0]  # one choice for all
    assert "the fastest, as measured in" in names[0]


@needs_two
def test_a_thousand_replays_give_every_rank_the_same_bits(tmp_path: Path) -> None:
    run_ranks(a_thousand_replays, SIZE, tmp_path, environment)


def test_gathers_take_every_dtype(tmp_path: Path) -> None:
    run_ranks(gathers_of_every_dtype, SIZE, tmp_path, environment)


def test_wrong_calls_are_refused_with_a_reason(tmp_path: Path) -> None:
    for messages in run_ranks(wrong_calls, SIZE, tmp_path, environment):
        host, strided, integers, maximum, output, length, dtype = messages
        assert host.startswith("tensor must be on CUDA device ")
        assert host.endswith(", and is in the host's memory")
        assert strided == "tensor must be contiguous, got [4, 2] with strides [1, 4]"
        assert integers == "tensor must be float32, float16 or bfloat16, got int64"
        assert maximum == 'op must be "sum", the only one that there is, got "max"'
        assert output.startswith("output must be on CUDA device ")
        assert length == "output must have 32 bytes, got 36"
        assert dtype == "output must be of the input's dtype, torch.float32, got torch.int32"
