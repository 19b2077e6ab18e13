"""The layers on a GPU: against torch, on the current stream, and in a recorded graph."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch.nn.functional import linear, silu

from minisgl._native import InputError
from minisgl.distributed import DistributedInfo, enable_pynccl_distributed, set_tp_info
from minisgl.layers import LinearColParallelMerged, LinearQKVMerged, LinearRowParallel
from tests.python.distributed.ranks import run_ranks
from tests.python.layers.conftest import BecomeRank

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.usefixtures("become_rank"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def filled(layer: LinearRowParallel, dtype: torch.dtype) -> LinearRowParallel:
    layer.to("cuda", dtype)
    layer.weight.normal_().mul_(layer.local_input_size**-0.5)
    if layer.bias is not None:
        layer.bias.normal_()
    return layer


def reference(layer: LinearRowParallel, x: torch.Tensor) -> torch.Tensor:
    """In f64, on the CPU."""
    bias = None if layer.bias is None else layer.bias.cpu().double()
    return linear(x.cpu().double(), layer.weight.cpu().double(), bias)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    tolerance = TOLERANCE[ours.dtype]
    torch.testing.assert_close(ours.cpu().double(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(1, 1), (3, 5), (64, 96), (1000, 513), (4096, 1024)])
def test_products_are_torchs(dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    for has_bias in (False, True):
        layer = filled(LinearRowParallel(*sizes, has_bias), dtype)
        for shape in ((), (0,), (1,), (2, 3), (17,), (64,), (3, 100)):
            x = torch.randn(*shape, sizes[0], device="cuda").to(dtype)
            y = layer(x)
            assert (y.dtype, y.device, y.shape) == (dtype, x.device, (*shape, sizes[1]))
            close(y, reference(layer, x))


def test_layers_are_made_on_the_default_device() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            qkv = LinearQKVMerged(64, 16, 8, 2, True)
            merged = LinearColParallelMerged(64, [32, 48], False)
    finally:
        torch.set_default_dtype(torch.float32)
    for layer in (qkv, merged):
        full = {name: torch.randn(t.shape) for name, t in layer.state_dict().items()}
        layer.load_state_dict(full)  # from the host
        assert all(t.is_cuda and t.dtype == torch.bfloat16 for t in layer.state_dict().values())
        x = torch.randn(5, 64, device="cuda").to(torch.bfloat16)
        close(layer(x) / 8, reference(layer, x) / 8)


def test_inputs_have_any_strides() -> None:
    layer = filled(LinearRowParallel(40, 24, True), torch.bfloat16)
    for x in (torch.randn(40, 5).t(), torch.randn(5, 80)[:, ::2], torch.randn(40).expand(5, 40)):
        x = x.to("cuda", torch.bfloat16)
        assert torch.equal(layer(x), layer(x.contiguous()))
    unaligned = torch.randn(201, device="cuda").to(torch.bfloat16)[1:].view(5, 40)
    close(layer(unaligned), reference(layer, unaligned))


def test_a_layer_moves_between_devices() -> None:
    layer, x = LinearRowParallel(40, 24, True), torch.randn(3, 40)
    layer.weight.normal_()
    layer.bias.normal_()
    here = layer(x)
    for _ in range(2):
        there = layer.to("cuda")(x.cuda()).cpu()
        torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)
        assert torch.equal(layer.to("cpu")(x), here)


def test_products_run_on_the_current_stream() -> None:
    layer = filled(LinearRowParallel(2048, 2048, False), torch.bfloat16)
    x = torch.randn(64, 2048, device="cuda").to(torch.bfloat16)
    wanted = layer(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    for _ in range(20):
        held = torch.zeros_like(x)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(2_000_000)  # what follows on this stream comes late
            held.copy_(x)
            y = layer(held)
        stream.synchronize()
        assert torch.equal(y, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 16, 256])
def test_graphs_replay_with_what_their_tensors_hold_then(dtype: torch.dtype, rows: int) -> None:
    first = filled(LinearRowParallel(512, 1024, True), dtype)
    second = filled(LinearRowParallel(1024, 512, True), dtype)
    x = torch.randn(rows, 512, device="cuda").to(dtype)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        second(first(x))
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = second(first(x))
    for _ in range(3):
        x.normal_()
        first.weight.normal_().mul_(512**-0.5)  # in place: the graph reads the same memory
        graph.replay()
        assert torch.equal(y, second(first(x)))
    for _ in range(1000):
        graph.replay()
    assert torch.equal(y, second(first(x)))


def test_a_graph_is_recorded_without_a_first_call() -> None:
    layer = filled(LinearRowParallel(96, 64, True), torch.bfloat16)
    layer(torch.randn(1, 96, device="cuda").to(torch.bfloat16))  # of another shape
    x = torch.randn(7, 96, device="cuda").to(torch.bfloat16)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    graph.replay()
    close(y, reference(layer, x))


def test_forward_keeps_no_memory() -> None:
    layer = filled(LinearRowParallel(1024, 1024, True), torch.bfloat16)
    x = torch.randn(16, 1024, device="cuda").to(torch.bfloat16)
    layer(x)
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    for _ in range(200):
        layer(x)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before[0]
    assert before[1] - torch.cuda.mem_get_info()[0] < 64 << 20


def test_another_device_is_named() -> None:
    layer = filled(LinearRowParallel(40, 24, True), torch.float32)
    with pytest.raises(InputError) as error:
        layer(torch.zeros(1, 40))
    assert str(error.value) == (
        "input is in the host's memory, the layer's weight on CUDA device 0"
    )
    layer.bias = layer.bias.cpu()
    with pytest.raises(InputError, match="bias is in the host's memory"):
        layer(torch.zeros(1, 40, device="cuda"))


needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@needs_two
def test_the_weights_gpu_need_not_be_the_current_one(become_rank: BecomeRank) -> None:
    layer = filled(LinearRowParallel(64, 48, True), torch.bfloat16)
    layer.to("cuda:1")
    x = torch.randn(3, 64, device="cuda:1").to(torch.bfloat16)
    assert torch.cuda.current_device() == 0
    y = layer(x)
    assert y.device == x.device
    close(y, reference(layer, x))
    with pytest.raises(InputError, match="input is on CUDA device 0, the layer's weight on CUDA"):
        layer(x.to("cuda:0"))


def block_over_ranks(rank: int, size: int) -> None:
    """An MLP whose sum is in the graph, against the whole of it in f64."""
    torch.cuda.set_device(rank)
    set_tp_info(rank, size)
    group = torch.distributed.group.WORLD
    assert group is not None
    enable_pynccl_distributed(DistributedInfo(rank, size), group, 64 << 20)
    hidden, intermediate = 1024, 2816
    generator = torch.Generator().manual_seed(0)
    gate, up = torch.randn(2, intermediate, hidden, generator=generator) / hidden**0.5
    down = torch.randn(hidden, intermediate, generator=generator) / intermediate**0.5
    bias = torch.randn(hidden, generator=generator)
    for dtype in (torch.bfloat16, torch.float32):
        gate_up = LinearColParallelMerged(hidden, [intermediate, intermediate], False)
        back = LinearRowParallel(intermediate, hidden, True)
        gate_up.to("cuda", dtype).load_state_dict({"weight": [gate, up]})
        back.to("cuda", dtype).load_state_dict({"weight": down, "bias": bias})
        whole = [tensor.to(dtype).double() for tensor in (gate, up, down, bias)]

        def mlp(
            x: torch.Tensor,
            gate_up: LinearColParallelMerged = gate_up,
            back: LinearRowParallel = back,
        ) -> torch.Tensor:
            a, b = gate_up(x).chunk(2, dim=-1)
            return back(silu(a) * b)

        for rows in (1, 64, 500):
            values = torch.randn(2, rows, hidden, generator=generator).to(dtype)
            x = values[0].cuda()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                mlp(x)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = mlp(x)
            x.copy_(values[1])
            for _ in range(1000):
                graph.replay()
            assert torch.equal(y, mlp(x))
            wide = values[1].double()
            theirs = linear(silu(linear(wide, whole[0])) * linear(wide, whole[1]), *whole[2:])
            tolerance = 1e-4 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(y.cpu().double(), theirs, rtol=tolerance, atol=tolerance)
        assert torch.equal(back.full_state_dict()["weight"].cpu(), down.to(dtype))
        assert torch.equal(
            gate_up.full_state_dict()["weight"].cpu(), torch.cat([gate, up]).to(dtype)
        )


@needs_two
def test_a_block_over_two_gpus_in_a_graph(tmp_path: Path) -> None:
    run_ranks(block_over_ranks, 2, tmp_path)
