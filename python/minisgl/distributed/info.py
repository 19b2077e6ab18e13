"""Which tensor-parallel rank this process is."""

from __future__ import annotations

from minisgl.distributed_info import DistributedInfo

__all__ = ["DistributedInfo", "get_tp_info", "set_tp_info"]

# The project's one piece of process-wide state: set once, when a rank process starts.
_tp_info: DistributedInfo | None = None


def set_tp_info(rank: int, size: int) -> None:
    """Says which rank this process is. Raises RuntimeError on a second call."""
    global _tp_info
    if _tp_info is not None:
        raise RuntimeError(f"the tensor-parallel rank is already set: {_tp_info}")
    _tp_info = DistributedInfo(rank, size)


def get_tp_info() -> DistributedInfo:
    """Raises RuntimeError before set_tp_info."""
    if _tp_info is None:
        raise RuntimeError("the tensor-parallel rank is not set; call set_tp_info first")
    return _tp_info
