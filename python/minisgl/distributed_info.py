"""Which of several ranks: what settings and the tensor-parallel vocabulary both speak of. It is a
module of its own, as settings import nothing of the native module.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DistributedInfo:
    """One rank of `size` ranks. Raises ValueError unless 0 <= rank < size, TypeError for what is
    no int, as a variable of the environment is none.
    """

    rank: int
    size: int

    def __post_init__(self) -> None:
        for name in ("rank", "size"):
            value = getattr(self, name)
            if not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank must be in [0, size), got rank {self.rank} of size {self.size}")

    def is_primary(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0
