"""PyNCCLDistributedImpl against torch's own sums, with two ranks that may share one GPU."""

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
from tests.python.distributed.ranks import run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and its torch"),
]

SIZE = 2
SHAPES = [(1,), (3, 5), (64, 576), (1024, 2048)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


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


def in_a_graph(rank: int, size: int) -> list[list[float]]:
    communicator = start(rank, max_bytes=0)
    x = torch.zeros(4, device="cuda")
    communicator.all_reduce(x)  # NCCL connects on first use, which can't be captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        communicator.all_reduce(x)
    replays = []
    for value in (1.0, 5.0):
        x.fill_(value + rank)
        graph.replay()
        torch.cuda.synchronize()
        replays.append([float(element) for element in x])
    del graph  # before the communicator
    return replays


def wrong_tensors(rank: int, size: int) -> list[str]:
    from minisgl import _native

    communicator = start(rank, max_bytes=0)
    messages = []
    for tensor in (
        torch.ones(4),
        torch.ones(4, 4, device="cuda").t()[:, :2],
        torch.ones(4, dtype=torch.int64, device="cuda"),
    ):
        with pytest.raises(_native.InputError) as caught:
            communicator.all_reduce(tensor)
        messages.append(str(caught.value))
    return messages


@pytest.mark.parametrize("function", [without_buffer, with_buffer])
def test_sums_and_gathers_are_torchs(function: Any, tmp_path: Path) -> None:
    run_ranks(function, SIZE, tmp_path, environment)


def test_runs_on_the_current_stream(tmp_path: Path) -> None:
    assert run_ranks(on_a_side_stream, SIZE, tmp_path, environment) == [[23.0] * 4] * SIZE


def test_is_captured_in_a_graph(tmp_path: Path) -> None:
    expected = [[3.0] * 4, [11.0] * 4]
    assert run_ranks(in_a_graph, SIZE, tmp_path, environment) == [expected] * SIZE


def test_wrong_tensors_are_refused_with_a_reason(tmp_path: Path) -> None:
    for messages in run_ranks(wrong_tensors, SIZE, tmp_path, environment):
        host, strided, integers = messages
        assert "must be on CUDA device" in host
        assert "must be contiguous" in strided
        assert "must be float32, float16 or bfloat16" in integers
