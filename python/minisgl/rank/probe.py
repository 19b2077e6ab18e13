"""The GPUs that ranks would compute on, as JSON on standard output: a program of its own, as the
server's process touches no GPU.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Sequence

NVLINK = 2  # NVML's nvmlGpuP2PCapsIndex_t
OK = 0


def nvlinks(pci_ids: Sequence[str]) -> list[list[int]]:
    """For each GPU the numbers of those that NVLink joins it to, directly or through a switch; all
    empty where NVML isn't there or doesn't say.
    """
    found: list[list[int]] = [[] for _ in pci_ids]
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return found
    if nvml.nvmlInit_v2() != OK:
        return found
    devices = [ctypes.c_void_p() for _ in pci_ids]
    for device, pci_id in zip(devices, pci_ids, strict=True):
        if nvml.nvmlDeviceGetHandleByPciBusId_v2(pci_id.encode(), ctypes.byref(device)) != OK:
            return found
    for number, one in enumerate(devices):
        for other, peer in enumerate(devices):
            status = ctypes.c_int(-1)
            if number != other and (
                nvml.nvmlDeviceGetP2PStatus(one, peer, NVLINK, ctypes.byref(status)) == OK
                and status.value == OK
            ):
                found[number].append(other)
    return found


def main() -> int:
    """Prints [[PCI id, numbers of joined GPUs], ...] in the order of the GPUs' numbers."""
    from minisgl import _native

    pci_ids = [_native.gpu_pci_id(number) for number in range(_native.num_gpus())]
    json.dump(list(zip(pci_ids, nvlinks(pci_ids), strict=True)), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
