"""How far a download of Hugging Face's library has come: as bars of its own on the screen, or told
to somebody else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm.auto import tqdm

REPORT_SECONDS = 0.5  # between two reports

Report = Callable[[int, int], None]  # done, of how much; in bytes, or in files


@dataclass(frozen=True)
class Progress:
    """Where progress is seen."""

    shown: bool = True  # as bars, where nobody is told
    report: Report | None = None  # called from any thread, one call at a time


def reporting_bars(report: Report) -> type[tqdm[Any]]:
    """A class for the library's bars, none of which is shown."""
    from tqdm.auto import tqdm

    bars: list[Bar] = []
    lock = threading.Lock()
    told = 0.0

    class Bar(tqdm):  # type: ignore[type-arg]
        """One of them: the library has some for bytes, and one for files."""

        def __init__(self, *args: Any, **options: Any) -> None:
            self._in_bytes = options.get("unit") == "B"
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})
            with lock:
                bars.append(self)

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal told
            with lock:
                self.n += n or 0
                # The bytes that came and those that were written: of these the sum is known.
                counted = [bar for bar in bars if bar._in_bytes and bar.total]
                counted = counted or [bar for bar in bars if bar.total]
                if counted and time.monotonic() - told >= REPORT_SECONDS:
                    told = time.monotonic()
                    total = int(min(bar.total or 0 for bar in counted))
                    report(min(int(max(bar.n for bar in counted)), total), total)
            return None

    return Bar
