"""A launcher whose ranks have no process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minisgl.engine.launcher import MakeLauncher, RankEvents
from minisgl.ipc.messages import (
    Abort,
    EngineInfo,
    EngineOptions,
    EngineStats,
    Output,
    PhaseReport,
    Place,
    Ready,
    StepOutputs,
)


class PaperRanks:
    """Ranks without a process: each is ready at once, and rank 0 answers an abort."""

    def __init__(self, events: RankEvents) -> None:
        self.events = events
        self.places: list[Place] = []
        self.ends: list[str] = []

    async def start(self, options: EngineOptions, places: Sequence[Place]) -> None:
        if options.model_path == "nowhere":
            raise OSError("no host is free")
        self.places = list(places)
        self.events.phase(PhaseReport(phase="looking for hosts"))
        for place in places:
            info = EngineInfo(vocab_size=100 + place.rank, max_model_len=32)
            self.events.message(place.rank, Ready(info))

    def send(self, rank: int, message: Any) -> bool:
        if rank == 0 and isinstance(message, Abort):
            outputs = [Output(request_id, [], "abort") for request_id in message.ids]
            self.events.message(0, StepOutputs(outputs, EngineStats()))
        return rank == 0

    async def stop(self, farewell: Any | None) -> None:
        self.ends.append(f"stop {farewell}")

    def kill(self) -> None:
        self.ends.append("kill")

    async def close(self) -> None:
        self.ends.append("close")


_check: MakeLauncher = PaperRanks
