"""Lists of cores, and those near a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from minisgl.cores import cores_near_gpu, format_core_list, parse_core_list


@pytest.mark.parametrize(("text", "cores"), [("0-2,8", [0, 1, 2, 8]), ("5", [5]), ("", [])])
def test_core_lists_are_read_and_written(text: str, cores: list[int]) -> None:
    assert parse_core_list(text + "\n") == cores
    assert format_core_list(cores) == text


def test_cores_near_a_gpu(tmp_path: Path) -> None:
    device = tmp_path / "bus/pci/devices/0000:3b:00.0"
    device.mkdir(parents=True)
    (device / "local_cpulist").write_text("0-3,8-11\n")
    assert cores_near_gpu("0000:3B:00.0", [9, 2, 5], tmp_path) == [2, 9]
    assert cores_near_gpu("0000:3B:00.0", [5], tmp_path) == []
    assert cores_near_gpu("0000:99:00.0", [1, 2], tmp_path) == []
    (device / "local_cpulist").write_text("nonsense")
    assert cores_near_gpu("0000:3b:00.0", [1, 2], tmp_path) == []
