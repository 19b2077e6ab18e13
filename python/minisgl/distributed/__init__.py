"""Tensor parallelism: who this process is, and how ranks sum and gather tensors.

Nothing here imports torch until a collective runs.
"""

from minisgl._native import divide_even
from minisgl.config import COMM_KINDS, CommKind
from minisgl.distributed.choose import (
    ChosenCommunicator,
    Group,
    check_kind,
    make_communicator,
)
from minisgl.distributed.communicator import DistributedCommunicator, enable_pynccl_distributed
from minisgl.distributed.impl import (
    DistributedImpl,
    NativeDistributedImpl,
    PyNCCLDistributedImpl,
    TorchDistributedImpl,
)
from minisgl.distributed.info import (
    DistributedInfo,
    get_tp_info,
    set_tp_info,
)
from minisgl.distributed.plugin import make_plugin_communicator
from minisgl.distributed.pynccl import init_pynccl

__all__ = [
    "COMM_KINDS",
    "ChosenCommunicator",
    "CommKind",
    "DistributedCommunicator",
    "DistributedImpl",
    "DistributedInfo",
    "Group",
    "NativeDistributedImpl",
    "PyNCCLDistributedImpl",
    "TorchDistributedImpl",
    "check_kind",
    "divide_even",
    "enable_pynccl_distributed",
    "get_tp_info",
    "init_pynccl",
    "make_communicator",
    "make_plugin_communicator",
    "set_tp_info",
]
