"""What a group of ranks says it was lost to, from what its ranks said."""

from __future__ import annotations

import pytest

from minisgl.engine.group import RankGroup
from minisgl.ipc.messages import EngineOptions, Failed


@pytest.mark.parametrize(
    ("first", "cause"),
    [
        # It only missed the other: what that one died of is the cause.
        (
            Failed("rank 1 has died", 1),
            "the process of rank 1 was killed by SIGKILL while starting",
        ),
        # It names the other, and blames nobody: this is the cause.
        (Failed("rank 1 has another model"), "rank 0: rank 1 has another model"),
        # It blames one that says nothing: then this is all that is known.
        (Failed("rank 2 has died", 2), "rank 0: rank 2 has died"),
    ],
)
async def test_a_loss_that_blames_another_lost_rank_is_not_the_cause(
    first: Failed, cause: str
) -> None:
    group = RankGroup(EngineOptions(model_path="x"), command=("unused",), size=3)
    group._handle(0, first)
    group._note_end(1, "was killed by SIGKILL")
    assert await group.wait_lost() == cause
    await group.close()
