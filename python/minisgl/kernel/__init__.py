"""Native building blocks under the field's usual names; not on the server's path."""

from minisgl._native import PyNCCLCommunicator
from minisgl.distributed.pynccl import init_pynccl

__all__ = ["PyNCCLCommunicator", "init_pynccl"]
