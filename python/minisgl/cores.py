"""Processor cores: the kernel's lists, which are near a GPU, and which are near each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def parse_core_list(text: str) -> list[int]:
    """The kernel's notation: "0-2,8" is [0, 1, 2, 8]. ValueError for anything else."""
    cores: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores += range(int(first), int(last or first) + 1)
    return cores


def format_core_list(cores: Sequence[int]) -> str:
    """The inverse of parse_core_list for sorted cores."""
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def cores_near_gpu(pci_id: str, allowed: Sequence[int], sysfs: Path = Path("/sys")) -> list[int]:
    """Those of the allowed cores that are on the side of the GPU with that PCI id; empty where the
    kernel doesn't say.
    """
    near = set(_read_cores(sysfs / "bus/pci/devices" / pci_id.lower() / "local_cpulist"))
    return [core for core in sorted(allowed) if core in near]


def neighbours_first(allowed: Sequence[int], sysfs: Path = Path("/sys")) -> list[int]:
    """The allowed cores in an order in which those of a NUMA node follow each other and, within it,
    those that share a physical core. By their numbers where the kernel doesn't say.
    """
    nodes: dict[int, int] = {}
    for folder in sysfs.glob("devices/system/node/node[0-9]*"):
        for core in _read_cores(folder / "cpulist"):
            nodes[core] = int(folder.name.removeprefix("node"))

    def place(core: int) -> tuple[int, int, int]:
        siblings = sysfs / f"devices/system/cpu/cpu{core}/topology/thread_siblings_list"
        return nodes.get(core, 0), min(_read_cores(siblings), default=core), core

    return sorted(allowed, key=place)


def _read_cores(file: Path) -> list[int]:
    try:
        return parse_core_list(file.read_text())
    except (OSError, ValueError):
        return []
