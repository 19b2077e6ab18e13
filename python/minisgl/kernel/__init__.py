"""Native building blocks under the names that readers of this field know."""

from minisgl._native import PyNCCLCommunicator
from minisgl.distributed.pynccl import init_pynccl

__all__ = ["PyNCCLCommunicator", "init_pynccl"]
