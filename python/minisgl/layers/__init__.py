"""Sharded linear layers on torch tensors, not on the server's path: for models built in Python.

Every rank makes the same layers from the same whole weights and keeps its part of them; which rank
this process is says minisgl.distributed.get_tp_info(). The cuts are those of the engine's models.
"""

from minisgl._native import LayerDevice, divide_even
from minisgl.layers.linear import LinearColParallelMerged, LinearQKVMerged, LinearRowParallel

__all__ = [
    "LayerDevice",
    "LinearColParallelMerged",
    "LinearQKVMerged",
    "LinearRowParallel",
    "divide_even",
]
