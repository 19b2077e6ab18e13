"""A process that is one rank, or one after the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minisgl.distributed import DistributedInfo, info

BecomeRank = Callable[[int, int], None]


@pytest.fixture
def become_rank(monkeypatch: pytest.MonkeyPatch) -> BecomeRank:
    """Says to layers made from now on which rank this process is; one of one at first."""

    def become(rank: int, size: int) -> None:
        monkeypatch.setattr(info, "_tp_info", DistributedInfo(rank, size))

    become(0, 1)
    return become
