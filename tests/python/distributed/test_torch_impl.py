"""TorchDistributedImpl over gloo in two processes, and the plug-in list in front of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from minisgl.distributed import (
    DistributedCommunicator,
    DistributedImpl,
    DistributedInfo,
    TorchDistributedImpl,
    enable_pynccl_distributed,
)
from tests.python.distributed.ranks import run_ranks


def sum_and_gather(rank: int, size: int) -> dict[str, Any]:
    communicator = DistributedCommunicator()
    x = torch.arange(6, dtype=torch.float32).reshape(2, 3) + 10 * rank
    gathered = communicator.all_gather(x)
    transposed = communicator.all_gather(x.t())  # not contiguous
    reduced = communicator.all_reduce(x)
    return {
        "in_place": reduced.data_ptr() == x.data_ptr(),
        "reduced": reduced.tolist(),
        "gathered": gathered.tolist(),
        "transposed": transposed.tolist(),
    }


@pytest.mark.parametrize("size", [1, 2])
def test_all_ranks_get_the_sum_and_the_parts_in_rank_order(size: int, tmp_path: Path) -> None:
    parts = [torch.arange(6, dtype=torch.float32).reshape(2, 3) + 10 * r for r in range(size)]
    expected = {
        "in_place": True,
        "reduced": torch.stack(parts).sum(0).tolist(),
        "gathered": torch.cat(parts).tolist(),
        "transposed": torch.cat([part.t() for part in parts]).tolist(),
    }
    assert run_ranks(sum_and_gather, size, tmp_path) == [expected] * size


def enable_without_cuda(rank: int, size: int) -> str:
    from minisgl import _native

    try:
        enable_pynccl_distributed(
            DistributedInfo(rank, size), torch.distributed.group.WORLD, max_bytes=0
        )
    except _native.InputError as error:
        assert isinstance(DistributedCommunicator.plugins[-1], TorchDistributedImpl)
        return str(error)
    return "enabled"


def test_every_rank_hears_that_nccl_is_missing(tmp_path: Path) -> None:
    from minisgl import _native

    if _native.build_info()["cuda"]:
        pytest.skip("this build has CUDA")
    first, second = run_ranks(enable_without_cuda, 2, tmp_path)
    assert "this build of minisgl has no CUDA" in first
    assert "this build of minisgl has no CUDA" in second


def test_a_single_rank_enables_nothing() -> None:
    before = list(DistributedCommunicator.plugins)
    enable_pynccl_distributed(DistributedInfo(0, 1), None, 0)  # type: ignore[arg-type]
    assert DistributedCommunicator.plugins == before


def test_a_scalar_has_nothing_to_gather_along() -> None:
    with pytest.raises(ValueError, match="at least one dimension, got a scalar"):
        DistributedCommunicator().all_gather(torch.tensor(1.0))


def test_the_last_plugin_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubling(DistributedImpl):
        def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul_(2)

        def all_gather(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x])

    plugins = [*DistributedCommunicator.plugins, Doubling()]
    monkeypatch.setattr(DistributedCommunicator, "plugins", plugins)
    communicator = DistributedCommunicator()
    assert communicator.all_reduce(torch.ones(2)).tolist() == [2, 2]
    assert communicator.all_gather(torch.ones(2)).tolist() == [1, 1, 1, 1]
