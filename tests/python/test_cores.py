"""Lists of cores, and those near a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from minisgl.cores import cores_near_gpu, format_core_list, neighbours_first, parse_core_list


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


def test_neighbours_follow_each_other(tmp_path: Path) -> None:
    """Two NUMA nodes of two cores with two threads each, numbered as kernels do."""
    for node, cores in ((0, "0-1,4-5"), (1, "2-3,6-7")):
        folder = tmp_path / f"devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cores)
    for core in range(8):
        topology = tmp_path / f"devices/system/cpu/cpu{core}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{core % 4},{core % 4 + 4}")
    assert neighbours_first(range(8), tmp_path) == [0, 4, 1, 5, 2, 6, 3, 7]
    assert neighbours_first([6, 3, 1], tmp_path) == [1, 6, 3]
    assert neighbours_first([2, 0], tmp_path / "nowhere") == [0, 2]
