"""How a workload is timed, the same for every engine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from workloads import Workload

# Completes all prompts of the workload with these numbers of new tokens, exactly.
Complete = Callable[[Sequence[int]], None]


def measure(workload: Workload, complete: Complete, runs: int) -> dict[str, float]:
    """Medians of tokens a second over `runs`: "prefill" of the prompts, "decode" of the steps after
    it, "output" over the whole time.

    A first pass makes one token a prompt, which is the prefill; a second makes them all, and what
    it takes longer is decoding. "decode" is absent where the workload makes one token a prompt.
    """
    rates: dict[str, list[float]] = {"prefill": [], "output": [], "decode": []}
    ones = [1] * len(workload.prompts)
    for _ in range(runs):
        first = _seconds(lambda: complete(ones))
        rates["prefill"].append(workload.prompt_tokens / first)
        if workload.output_tokens == len(ones):
            rates["output"].append(workload.output_tokens / first)
            continue
        whole = _seconds(lambda: complete(workload.max_tokens))
        rates["output"].append(workload.output_tokens / whole)
        rates["decode"].append((workload.output_tokens - len(ones)) / (whole - first))
    return {name: statistics.median(values) for name, values in rates.items() if values}


def _seconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
