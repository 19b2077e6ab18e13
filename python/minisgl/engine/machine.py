"""What this host has that replicas can be given."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Mapping

from minisgl.children import child_environment, python_command
from minisgl.cores import cores_near_gpu, neighbours_first
from minisgl.engine.placement import Gpu, Machine

VISIBLE = "CUDA_VISIBLE_DEVICES"
PROBE_SECONDS = 60.0

logger = logging.getLogger(__name__)


def read_machine(device: str) -> Machine:
    """This host, as far as this process may use it. `device` is the engine's option: a processor
    alone is asked for no GPUs.
    """
    allowed = neighbours_first(sorted(os.sched_getaffinity(0)))
    gpus = () if device == "cpu" else _find_gpus(allowed)
    return Machine(tuple(allowed), gpus)


def gpu_names(count: int, environment: Mapping[str, str]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES has to say for each of the GPUs that this process sees."""
    visible = environment.get(VISIBLE)
    if visible is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in visible.split(",")][:count]


def _find_gpus(allowed: list[int]) -> tuple[Gpu, ...]:
    """None where the ranks would find none, or can't be asked."""
    environment = child_environment()
    try:
        found = subprocess.run(
            python_command("minisgl.rank.probe"),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=PROBE_SECONDS,
        )
        rows = json.loads(found.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        logger.warning("the GPUs of this host can't be told: %s", error)
        return ()
    names = gpu_names(len(rows), environment)
    return tuple(
        Gpu(name, tuple(cores_near_gpu(pci_id, allowed)), frozenset(links))
        for name, (pci_id, links) in zip(names, rows, strict=True)
    )
