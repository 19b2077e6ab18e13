"""What the screen says while a server starts."""

from __future__ import annotations

import logging

import msgspec
import pytest

from minisgl.config import ServerArgs
from minisgl.distributed import DistributedInfo
from minisgl.ipc.messages import EngineInfo, PhaseReport
from minisgl.startup import PhaseLog, describe_engine

INFO = EngineInfo(vocab_size=10, max_model_len=20, weight_bytes=10**9, kv_cache_bytes=2 * 10**9)


def test_the_memory_of_a_gpu_is_a_budget() -> None:
    assert not [line for line in describe_engine(ServerArgs(), [INFO]) if "GPU memory" in line]
    assert not [line for line in describe_engine(ServerArgs(), [INFO]) if "--deterministic" in line]
    assert not [line for line in describe_engine(ServerArgs(), [INFO]) if "one kernel" in line]
    lines = describe_engine(ServerArgs(deterministic=True), [INFO])
    assert [line for line in lines if line.endswith("(--deterministic)")]
    info = EngineInfo(
        vocab_size=10,
        max_model_len=20,
        weight_bytes=10**9,
        kv_cache_bytes=2 * 10**9,
        workspace_bytes=3 * 10**8,
        graph_bytes=4 * 10**7,
        free_bytes=5 * 10**9,
        stacked_rows=2,
    )
    assert "decode steps: all layers in one kernel for up to 2 sequences" in describe_engine(
        ServerArgs(), [info]
    )
    (line,) = (line for line in describe_engine(ServerArgs(), [info]) if "GPU memory" in line)
    assert line == (
        "GPU memory: weights 1.00 GB, workspace 300.0 MB, graphs 40.0 MB, KV cache 2.00 GB, "
        "5.00 GB left free (--memory-fraction)"
    )


@pytest.mark.parametrize(
    ("asked", "device", "why"),
    [
        ("auto", "CPU (avx2)", "auto, and there is no GPU that this build can use; --device"),
        ("auto", "NVIDIA H200", "auto, and there is a GPU; --device"),
        ("cpu", "CPU (avx2)", "asked for; --device"),
    ],
)
def test_the_device_is_explained(asked: str, device: str, why: str) -> None:
    info = EngineInfo(vocab_size=10, max_model_len=20, device=device)
    assert f"device: {device} ({why})" in describe_engine(ServerArgs(device=asked), [info])


def test_the_threads_are_explained() -> None:
    ranks = [EngineInfo(vocab_size=10, max_model_len=20, num_threads=1, isa="avx2")] * 2
    for args, shown, why in (
        (ServerArgs(), ranks[:1], "cores allowed to this process; --threads"),
        (
            ServerArgs(tp_info=DistributedInfo(0, 2)),
            ranks,
            "cores allowed to this process, divided by ranks; --threads",
        ),
        (ServerArgs(num_threads=1), ranks[:1], "asked for; --threads"),
    ):
        line = f"processor: 1 thread ({why}), avx2 kernels (the best it has)"
        assert line in describe_engine(args, shown)


def test_how_many_tokens_the_prefix_cache_has() -> None:
    info = EngineInfo(
        vocab_size=10, max_model_len=20, kv_cache_tokens=640, page_size=16, prefix_cache=True
    )
    (line,) = (line for line in describe_engine(ServerArgs(), [info]) if "prefix" in line)
    assert "up to 640 tokens in pages of 16 (--disable-prefix-cache)" in line
    info = msgspec.structs.replace(
        info, host_tokens=6400, host_bytes=2**25, host_bytes_per_second=5.12e10
    )
    (line,) = (line for line in describe_engine(ServerArgs(), [info]) if "prefix" in line)
    assert line.endswith(
        "; 6400 tokens in 33.6 MB of the host's memory, from there at 51.2 GB/s (--kv-host-bytes)"
    )
    (line,) = (line for line in describe_engine(ServerArgs(), [INFO]) if "prefix" in line)
    assert line == "prefix cache: none (--disable-prefix-cache)"


def test_ranks_are_described_where_there_are_several() -> None:
    assert not [line for line in describe_engine(ServerArgs(), [INFO]) if "rank" in line]
    ranks = [
        EngineInfo(
            vocab_size=10, max_model_len=20, weight_bytes=5 * 10**8, comm="they talk", cores=c
        )
        for c in ("0-1", "2-3")
    ]
    assert describe_engine(ServerArgs(tp_info=DistributedInfo(0, 2)), ranks)[:3] == [
        "ranks: 2 (--tp), each with 500.0 MB of the weights",
        "they talk (--comm auto)",
        "cores by rank: 0-1; 2-3",
    ]


def test_a_phase_is_a_line_with_its_seconds(caplog: pytest.LogCaptureFixture) -> None:
    log = PhaseLog()
    with caplog.at_level(logging.INFO):
        log.report(PhaseReport(phase="recording decode steps", done=1, total=2))  # too soon to say
        log.report(PhaseReport(phase="recording decode steps", seconds=1.5, finished=True))
    assert [record.message for record in caplog.records] == ["recording decode steps: 1.50 s"]
