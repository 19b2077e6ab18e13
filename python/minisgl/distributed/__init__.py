"""Tensor parallelism: who this process is, and how ranks sum and gather tensors.

Nothing here imports torch until a collective runs.
"""

from minisgl._native import divide_even
from minisgl.distributed.communicator import DistributedCommunicator, enable_pynccl_distributed
from minisgl.distributed.impl import (
    DistributedImpl,
    PyNCCLDistributedImpl,
    TorchDistributedImpl,
)
from minisgl.distributed.info import (
    DistributedInfo,
    get_tp_info,
    set_tp_info,
)
from minisgl.distributed.pynccl import init_pynccl

__all__ = [
    "DistributedCommunicator",
    "DistributedImpl",
    "DistributedInfo",
    "PyNCCLDistributedImpl",
    "TorchDistributedImpl",
    "divide_even",
    "enable_pynccl_distributed",
    "get_tp_info",
    "init_pynccl",
    "set_tp_info",
]
