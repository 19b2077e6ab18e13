"""The rank vocabulary: DistributedInfo, the once-set rank of a process, even division."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from minisgl.distributed import DistributedInfo, divide_even
from minisgl.environment import pynccl_buffer_limit


def test_rank_0_is_primary() -> None:
    assert DistributedInfo(0, 4).is_primary()
    assert not DistributedInfo(1, 4).is_primary()


def test_info_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DistributedInfo(0, 1).rank = 1  # type: ignore[misc]


@pytest.mark.parametrize(("rank", "size"), [(-1, 2), (2, 2), (0, 0)])
def test_rank_outside_its_size_is_refused(rank: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"got rank {rank} of size {size}"):
        DistributedInfo(rank, size)


@pytest.mark.parametrize(
    ("rank", "size", "named"), [("0", "2", "rank"), (1.0, 2, "rank"), (0, None, "size")]
)
def test_rank_and_size_are_ints(rank: object, size: object, named: str) -> None:
    wrong = {"rank": rank, "size": size}[named]
    with pytest.raises(TypeError, match=f"^{named} must be an int, got {wrong!r}$"):
        DistributedInfo(rank, size)  # type: ignore[arg-type]


def test_rank_is_set_once_a_process_and_torch_is_not_needed() -> None:
    # In a process of its own: what is set stays set.
    code = """
import sys
from minisgl.distributed import DistributedInfo, get_tp_info, set_tp_info
def message(call):
    try:
        call()
    except RuntimeError as error:
        return str(error)
assert "not set" in message(get_tp_info)
set_tp_info(1, 2)
assert get_tp_info() == DistributedInfo(rank=1, size=2)
assert "already set" in message(lambda: set_tp_info(1, 2))
assert get_tp_info() is get_tp_info()
assert "torch" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_divide_even() -> None:
    assert divide_even(12, 4) == 3
    assert divide_even(0, 4) == 0


@pytest.mark.parametrize(("a", "b"), [(9, 4), (3, 4), (4, 0), (4, -2)])
def test_uneven_division_names_both_numbers(a: int, b: int) -> None:
    with pytest.raises(ValueError, match=f"{a} can't be divided evenly by {b}"):
        divide_even(a, b)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", None), ("0", 0), ("4096", 4096), ("64K", 65536), ("3m", 3 * 2**20), ("2G", 2**31)],
)
def test_buffer_limit(text: str, expected: int | None) -> None:
    assert pynccl_buffer_limit({"MINISGL_PYNCCL_MAX_BUFFER_SIZE": text}) == expected


@pytest.mark.parametrize("text", ["-1", "1.5G", "64KB", "K", "lots"])
def test_bad_buffer_limit_names_the_variable_and_the_value(text: str) -> None:
    with pytest.raises(ValueError, match=rf"MINISGL_PYNCCL_MAX_BUFFER_SIZE.*{text}"):
        pynccl_buffer_limit({"MINISGL_PYNCCL_MAX_BUFFER_SIZE": text})
