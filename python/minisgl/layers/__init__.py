"""Sharded linear layers on torch's tensors, not on the server's path: for models built in Python.

Every rank makes the same layers and holds its part of them; which rank this process is says
minisgl.distributed.get_tp_info(). The cuts are those of the engine's models. Products run through
the native module, on CPUs and on CUDA devices.
"""

from minisgl._native import divide_even
from minisgl.layers.base import BaseOP
from minisgl.layers.linear import LinearColParallelMerged, LinearQKVMerged, LinearRowParallel

__all__ = [
    "BaseOP",
    "LinearColParallelMerged",
    "LinearQKVMerged",
    "LinearRowParallel",
    "divide_even",
]
