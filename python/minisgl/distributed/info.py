"""Which tensor-parallel rank this process is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DistributedInfo:
    """One rank of `size` ranks. Raises ValueError unless 0 <= rank < size."""

    rank: int
    size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank must be in [0, size), got rank {self.rank} of size {self.size}")

    def is_primary(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0


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
